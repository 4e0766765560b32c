"""The demo's books: what is missing, doubled or wrong is seen, and what is right is not complained about."""

from __future__ import annotations

import msgspec
import pytest

from cloud_sync.contract.messages import Gap, Row
from cloud_sync.contract.results import Origin, Part, encode_row, pack
from cloud_sync.contract.topics import ContractError
from scripts.demonstration.books import Books, Totals, file_name, problems, summary

LABELS = ["3", "1", "4"]


def row(seq: int, number: int, label: str, kind: str = "result") -> Row:
    fields = {
        "seq": seq,
        "kind": kind,
        "source": "held-out",
        "key": f"{file_name(number)}#00ff",
        "count": 1,
        "time": None,
        "clock_quality": "unknown",
        "latency_us": 900.0,
        "model": "digits@1.0.0",
        "digest": "0" * 64,
        "engine": "onnxruntime",
    }
    result = msgspec.Raw(msgspec.json.encode({"index": 0, "label": label, "scores": [1.0]}))
    return Row(**msgspec.convert(fields, dict), result=result)


def message(first: int, rows: list[Row], gaps: tuple[Gap, ...] = (), last: int = 0) -> bytes:
    part = Part(first, last or first + len(rows) - 1, tuple(encode_row(one) for one in rows), gaps)
    return pack(Origin("demo", "device", "epoch-1", None, "digits"), part, historical=False)


def books(fed: int) -> Books:
    books = Books("digits", LABELS)
    assert [books.feed() for _ in range(fed)] == list(range(fed))
    return books


def test_a_complete_run_has_nothing_to_complain_about() -> None:
    run = books(4)
    run.arrived(message(1, [row(1, 0, "3"), row(2, 1, "1")]))
    run.arrived(message(3, [row(3, 2, "4"), row(4, 3, "3")]))  # the fourth frame is the first image again
    assert (run.delivered, run.missing, run.doubled, run.accuracy, run.failures) == (4, 0, 0, 1.0, [])


def test_a_wrong_label_lowers_the_accuracy() -> None:
    run = books(2)
    run.arrived(message(1, [row(1, 0, "3"), row(2, 1, "7")]))
    assert run.accuracy == 0.5


def test_what_has_not_arrived_is_missing() -> None:
    run = books(3)
    run.arrived(message(2, [row(2, 1, "1")]))
    assert (run.holes, run.missing, run.under_way) == (1, 2, 2)


def test_a_gap_says_why_but_is_missing_all_the_same() -> None:
    run = books(2)
    run.arrived(message(1, [row(2, 1, "1")], (Gap(first=1, last=1, reason="shed"),), last=2))
    assert (run.holes, run.missing) == (1, 1)


def test_a_number_that_comes_twice_is_doubled() -> None:
    run = books(1)
    run.arrived(message(1, [row(1, 0, "3")]))
    run.arrived(message(1, [row(1, 0, "3")]))
    assert (run.delivered, run.doubled, run.right) == (1, 1, 1)


def test_a_frame_under_two_numbers_is_doubled() -> None:
    run = books(1)
    run.arrived(message(1, [row(1, 0, "3"), row(2, 0, "3")]))
    assert (run.delivered, run.doubled, run.missing) == (1, 1, 0)


@pytest.mark.parametrize(("number", "kind"), [(0, "error"), (0, "rejected"), (5, "result")])
def test_what_is_no_prediction_of_a_fed_frame_is_told(number: int, kind: str) -> None:
    run = books(1)
    run.arrived(message(1, [row(1, number, "3", kind)]))
    assert len(run.failures) == 1
    assert kind in run.failures[0]
    assert run.delivered == 0


def test_a_tampered_message_is_refused() -> None:
    run = books(1)
    with pytest.raises(ContractError):
        run.arrived(message(1, [row(1, 0, "3")]).replace(b'"3"', b'"8"'))
    assert run.delivered == 0


def complete_run() -> Books:
    run = books(3)
    run.arrived(message(1, [row(1, 0, "3"), row(2, 1, "1"), row(3, 2, "4")]))
    return run


def test_the_verdict_on_a_complete_run_is_good() -> None:
    stored = Totals(received=3, committed=3)
    assert problems(complete_run(), stored, 0.97) == []
    assert summary(complete_run(), stored) == (
        "demo: received=3 committed=3 delivered=3 missing=0 doubled=0 accuracy=1.0000"
    )


@pytest.mark.parametrize("stored", [Totals(3, 2, 1), Totals(2, 2), Totals(4, 3, 0, 1), Totals(4, 4)])
def test_the_verdict_sees_what_the_daemon_did_not_commit(stored: Totals) -> None:
    assert "the daemon's account" in "".join(problems(complete_run(), stored, 0.97))


def test_the_verdict_tells_everything_that_is_wrong() -> None:
    run = books(4)
    run.arrived(message(1, [row(1, 0, "9"), row(2, 1, "9"), row(3, 1, "9")]))
    told = "\n".join(problems(run, Totals(4, 4), 0.97))
    for part in ("2 results are missing", "1 results arrived twice", "the accuracy is 0.0000"):
        assert part in told
    assert problems(books(0), Totals(), 0.0) == ["nothing was fed"]
