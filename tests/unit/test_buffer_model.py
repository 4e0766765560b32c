"""The store against a simple model: whatever happens in whatever order, every number is accounted for."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edged.buffer.cursor import AckCursor, write_cursor
from edged.buffer.files import make_directory, tree_bytes
from edged.buffer.journal import Journal
from edged.buffer.reader import BufferReader
from edged.buffer.recovery import recover
from edged.buffer.store import StoreSettings
from edged.buffer.upkeep import Upkeep
from edged.domain import Entry, Kind, Receipt
from tests.support.buffer import entry, gaps_of, read_all, rows_of, store_settings

STREAMS = ("low", "mid", "high")
PRIORITIES = {"low": 0, "mid": 5, "high": 5}
CAP = 512 << 10


class BufferModel(RuleBasedStateMachine):
    """The model: the entries of each stream in order, and how far they were acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.generation = 0
        self.rows: dict[str, list[Entry]] = {stream: [] for stream in STREAMS}
        self.acked = dict.fromkeys(STREAMS, 0)
        self.fresh = 0

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.root)

    @property
    def settings(self) -> StoreSettings:
        place = self.root / str(self.generation)
        return store_settings(place, cap_bytes=CAP, segment_bytes=64 << 10, priorities=PRIORITIES, keep_s=0.0)

    @initialize()
    def start(self) -> None:
        make_directory(self.settings.directory)
        shelf, notes = recover(self.settings, "model")
        self.journal = Journal(shelf, notes)
        self.upkeep = Upkeep(self.journal)
        assert notes == []

    @rule(
        stream=st.sampled_from(STREAMS),
        kinds=st.lists(st.sampled_from(list(Kind)), min_size=1, max_size=20),
        size=st.sampled_from([30, 300, 3000]),
        again=st.booleans(),
    )
    def commit(self, stream: str, kinds: list[Kind], size: int, *, again: bool) -> None:
        batch = []
        for kind in kinds:
            self.fresh += 1
            batch.append(entry(f"k{self.fresh}", stream, kind, size, count=3 if kind is Kind.DROPPED else 1))
        if again and self.rows[stream]:
            batch.append(self.rows[stream][len(self.rows[stream]) // 2])
        receipts = self.journal.append(batch)
        self.upkeep.tend()
        for item, receipt in zip(batch, receipts, strict=True):
            assert isinstance(receipt, Receipt), receipt
            if receipt.duplicate:
                assert self.rows[stream][receipt.seq - 1].frame == item.frame is not None
            else:
                self.rows[stream].append(item)
                assert receipt.seq == len(self.rows[stream])

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.start()

    @rule()
    def crash(self) -> None:
        """Go on with a copy of the files as they lie there: what a kill leaves."""
        old = self.settings
        self.generation += 1
        make_directory(self.settings.directory.parent)
        shutil.copytree(old.directory, self.settings.directory)
        if old.ack_file.exists():
            shutil.copy(old.ack_file, self.settings.ack_file)
        self.journal.close()
        self.start()

    @rule(stream=st.sampled_from(STREAMS), share=st.floats(0, 1))
    def acknowledge(self, stream: str, share: float) -> None:
        self.acked[stream] = max(self.acked[stream], int(share * len(self.rows[stream])))
        epoch = self.journal.shelf.ledger.epoch
        write_cursor(self.settings.ack_file, AckCursor({(epoch, each): seq for each, seq in self.acked.items()}))

    @rule()
    def tidy(self) -> None:
        self.upkeep.tidy()

    @invariant()
    def every_number_is_accounted_for(self) -> None:
        directory = self.settings.directory
        assert tree_bytes(directory) <= CAP
        [epoch] = BufferReader(directory).epochs()
        for stream in STREAMS:
            items = read_all(directory, epoch.id, stream)
            rows, gaps = rows_of(items), gaps_of(items)
            assert len(rows) + sum(gap.last - gap.first + 1 for gap in gaps) == len(self.rows[stream])
            for row in rows:
                known = self.rows[stream][row.seq - 1]
                assert (row.kind, row.source, row.body, row.count) == (
                    known.kind,
                    known.source,
                    known.body,
                    known.count,
                )
                assert row.key == (known.frame.key if known.frame else "")
            for gap in gaps:
                assert gap.reason in ("cap", "acked")
                assert gap.reason == "cap" or gap.last <= self.acked[stream]

    @invariant()
    def totals_are_those_of_everything_ever_stored(self) -> None:
        totals = self.journal.shelf.totals()
        for stream in STREAMS:
            expected = [0, 0, 0]
            for each in self.rows[stream]:
                expected[{Kind.REJECTED: 1, Kind.DROPPED: 2}.get(each.kind, 0)] += each.count
            assert totals.get(f"{stream}-spool", (0, 0, 0)) == tuple(expected)


BufferModel.TestCase.settings = settings(
    max_examples=6,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink hundreds of commits takes minutes
)
test_the_store_does_what_the_model_says = BufferModel.TestCase
