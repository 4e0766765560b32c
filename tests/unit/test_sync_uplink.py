"""What the uplink sends and how far it believes that it was delivered, without any network."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sync.device import uplink as uplinks
from cloud_sync.device.uplink import HOLD_MOST_S, NO_SUBSCRIBER, PATIENCE_S, LaneKey, LaneState, Stored, Turn, Uplink
from edged.backoff import MOST_S, Backoff

DENIED = 0x87
S = LaneKey("e1", "s")


def make(acked: dict[LaneKey, int] | None = None, *, central: bool = False, rows: int = 10) -> Uplink:
    return Uplink(acked or {}, acked or {}, central=central, rows=rows, jitter=lambda: 1.0)


def stored(last: int, key: LaneKey = S, priority: int = 5) -> Stored:
    return Stored(key, last, priority)


def ready(*positions: Stored, window: int = 4, epochs: tuple[str, ...] = ("e1",), **options: object) -> Uplink:
    uplink = make(**options)  # type: ignore[arg-type]  # passed through to make
    uplink.refresh(epochs, positions, 0.0)
    uplink.opened(window, 0.0)
    return uplink


def send(uplink: Uplink, tag: int, now: float = 0.0, size: int | None = None) -> Turn:
    """Send the next message with at most ``size`` rows."""
    turn = uplink.next(now)
    assert turn is not None
    uplink.sent(turn.key, min(turn.up_to, turn.after + min(turn.rows, size or turn.rows)), tag)
    return turn


def lane(uplink: Uplink, key: LaneKey = S) -> uplinks.Lane:
    return next(each for each in uplink.lanes if each.key == key)


def test_a_lane_sends_one_message_first_and_opens_the_window_when_it_was_taken() -> None:
    uplink = ready(stored(100))
    assert send(uplink, 1).after == 0
    assert uplink.next(0.0) is None, "the first message must come back before more go out"
    uplink.puback(1, 0, "", 0.0)
    assert [send(uplink, tag).after for tag in (2, 3, 4, 5)] == [10, 20, 30, 40]
    assert uplink.next(0.0) is None, "the window is full"
    assert uplink.in_flight == 4


def test_the_cursor_moves_only_over_what_was_taken_in_one_piece() -> None:
    uplink = ready(stored(100))
    send(uplink, 1)
    uplink.puback(1, 0, "", 0.0)
    send(uplink, 2)
    send(uplink, 3)
    uplink.puback(3, 0, "", 0.0)
    assert uplink.acked() == {S: 10}
    uplink.puback(2, 0, "", 0.0)
    assert uplink.acked() == {S: 30}


@pytest.mark.parametrize("code", [NO_SUBSCRIBER, 0x80, DENIED, 0x97])
def test_a_refusal_delivers_nothing_holds_the_lane_and_says_why(code: int) -> None:
    uplink = ready(stored(3))
    send(uplink, 1)
    assert uplink.puback(1, code, "no reason at all", 0.0)
    assert uplink.acked() == {}
    assert (lane(uplink).state, lane(uplink).reason) == (LaneState.HELD, "no reason at all")
    assert uplink.next(0.0) is None
    due = uplink.deadline()
    assert due is not None
    assert due > 0
    turn = uplink.next(due)
    assert turn is not None
    assert (turn.after, turn.rows) == (0, 1), "the next attempt is a single row"


def test_what_was_on_its_way_behind_a_refusal_does_not_count() -> None:
    uplink = ready(stored(100))
    send(uplink, 1)
    uplink.puback(1, 0, "", 0.0)
    for tag in (2, 3, 4):
        send(uplink, tag)
    uplink.puback(2, 0, "", 0.0)
    uplink.puback(3, DENIED, "denied", 0.0)
    due = lane(uplink).retry_at
    assert uplink.next(due) is None, "the message behind the refused one is still on its way"
    uplink.puback(4, 0, "", 0.0)
    assert uplink.acked() == {S: 20}
    turn = uplink.next(due)
    assert turn is not None
    assert turn.after == 20


def test_refusals_wait_longer_each_time_and_are_forgotten_when_one_is_taken() -> None:
    uplink, now, waits = ready(stored(100)), 0.0, []
    for tag in range(8):
        send(uplink, tag, now)
        uplink.puback(tag, NO_SUBSCRIBER, "nobody", now)
        waits.append(lane(uplink).retry_at - now)
        now = lane(uplink).retry_at
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (1.0, HOLD_MOST_S)
    send(uplink, 100, now)
    uplink.puback(100, 0, "", now)
    assert (lane(uplink).state, lane(uplink).reason) == (LaneState.FLOWING, "")
    sizes = []
    for tag in range(101, 106):
        sizes.append(send(uplink, tag, now).rows)
        uplink.puback(tag, 0, "", now)
    assert sizes == [2, 4, 8, 10, 10], "after one row messages double in size"


def test_a_connection_that_ends_under_way_halves_the_messages_and_a_single_row_goes_terse_at_last() -> None:
    uplink = ready(stored(1000), rows=64)
    turns = []
    for now in range(5):
        turns.append(send(uplink, now, now))
        uplink.closed()
        uplink.opened(4, now)
    assert [(turn.rows, turn.terse) for turn in turns] == [(64, False), (1, False), (1, False), (1, False), (1, True)]
    assert {turn.after for turn in turns} == {0}


def test_messages_grow_again_to_half_of_what_ended_the_connection_and_then_slowly() -> None:
    uplink = ready(stored(1000), rows=64)
    send(uplink, 0)
    uplink.closed()
    uplink.opened(4, 0.0)
    sizes = []
    for tag in range(1, 9):
        sizes.append(send(uplink, tag).rows)
        uplink.puback(tag, 0, "", 0.0)
    assert sizes == [1, 2, 4, 8, 16, 32, 38, 39]


def test_a_connection_that_ends_while_nothing_is_under_way_changes_nothing() -> None:
    uplink = ready(stored(1000), rows=64)
    uplink.closed()
    uplink.opened(4, 0.0)
    assert send(uplink, 1).rows == 64


def test_a_single_row_that_the_broker_calls_too_large_goes_terse_next() -> None:
    uplink = ready(stored(1000))
    for tag, expected in enumerate([False, False, True]):
        now = lane(uplink).retry_at
        assert send(uplink, tag, now).terse is expected
        uplink.puback(tag, 0x95, "Packet too large", now)


def test_a_held_lane_stops_nobody_else() -> None:
    other = LaneKey("e1", "other")
    uplink = ready(stored(5, priority=9), stored(5, other, priority=0))
    send(uplink, 1)
    uplink.puback(1, DENIED, "denied", 0.0)
    assert send(uplink, 2).key == other


def test_the_highest_priority_goes_first_and_equal_ones_take_turns() -> None:
    a, b, high = (LaneKey("e1", name) for name in ("a", "b", "high"))
    uplink = ready(stored(50, a), stored(50, b), stored(20, high, priority=9), window=20)
    for tag in range(3):
        send(uplink, tag)
    for tag in range(3):
        uplink.puback(tag, 0, "", 0.0)
    keys = [send(uplink, tag).key for tag in range(10, 15)]
    assert keys[0] == high
    assert keys[1:] in ([a, b, a, b], [b, a, b, a])


def test_an_older_epoch_goes_out_whole_before_the_newer_one() -> None:
    old, new = LaneKey("old", "s"), LaneKey("new", "s")
    uplink = ready(stored(5, old), stored(5, new), epochs=("old", "new"))
    assert send(uplink, 1).key == old
    assert uplink.next(0.0) is None
    uplink.puback(1, 0, "", 0.0)
    assert send(uplink, 2).key == new


def test_what_was_stored_before_the_connection_is_historical_and_not_mixed_with_what_is_fresh() -> None:
    uplink = ready(stored(12))
    first = send(uplink, 1)
    assert (first.historical, first.up_to) == (True, 12)
    uplink.puback(1, 0, "", 0.0)
    uplink.refresh(["e1"], [stored(15)], 0.0)
    rest = send(uplink, 2)
    assert (rest.historical, rest.after, rest.up_to) == (True, 10, 12)
    fresh = send(uplink, 3)
    assert (fresh.historical, fresh.after, fresh.up_to) == (False, 12, 15)


def test_a_new_connection_goes_on_behind_what_was_taken_and_forgets_what_was_on_its_way() -> None:
    uplink = ready(stored(100))
    send(uplink, 1)
    uplink.puback(1, 0, "", 0.0)
    send(uplink, 2)
    uplink.closed()
    assert uplink.next(0.0) is None
    uplink.opened(4, 1.0)
    assert uplink.puback(2, 0, "", 1.0) is False, "a tag of the old connection means nothing"
    assert send(uplink, 1).after == 10


def test_the_cursor_of_a_stream_that_cannot_be_seen_now_is_kept() -> None:
    gone = LaneKey("e1", "gone")
    uplink = ready(stored(5), acked={gone: 7, LaneKey("forgotten", "s"): 9})
    assert uplink.acked() == {gone: 7}
    uplink.refresh(["e1"], [stored(5), stored(8, gone)], 0.0)
    assert lane(uplink, gone).sent == 7


def test_the_centre_is_believed_only_up_to_what_was_published() -> None:
    uplink = ready(stored(20), central=True)
    send(uplink, 1)
    uplink.puback(1, 0, "", 0.0)
    assert uplink.acked() == {}, "the broker's word is not the centre's"
    assert uplink.confirm("e1", {"s": 4}, 0.0) == []
    assert uplink.acked() == {S: 4}
    (problem,) = uplink.confirm("e1", {"s": 99}, 0.0)
    assert "99" in problem
    assert uplink.acked() == {S: 10}
    assert uplink.confirm("e1", {"s": 2, "unknown": 5}, 0.0) == []
    assert uplink.acked() == {S: 10}, "an ack does not go back"


def test_an_ack_does_nothing_where_the_broker_is_believed() -> None:
    uplink = ready(stored(20))
    send(uplink, 1)
    uplink.puback(1, 0, "", 0.0)
    assert uplink.confirm("e1", {"s": 3}, 0.0) == []
    assert uplink.acked() == {S: 10}


def test_what_the_centre_does_not_ack_for_long_is_sent_again() -> None:
    uplink = ready(stored(10), central=True)
    send(uplink, 1)
    uplink.puback(1, 0, "", 0.0)
    uplink.confirm("e1", {"s": 6}, 1.0)
    assert uplink.next(PATIENCE_S) is None
    turn = uplink.next(1.0 + PATIENCE_S)
    assert turn is not None
    assert turn.after == 6


def test_where_the_centre_acks_a_restart_knows_what_was_published() -> None:
    uplink = Uplink({S: 3}, {S: 8}, central=True, rows=10, jitter=lambda: 1.0)
    uplink.refresh(["e1"], [stored(10)], 0.0)
    uplink.opened(4, 0.0)
    assert uplink.confirm("e1", {"s": 8}, 0.0) == []
    assert uplink.acked() == {S: 8}


def test_a_state_moves_only_as_the_table_says() -> None:
    for state, signal in itertools.product(LaneState, uplinks.Signal):
        moved = uplinks.Lane(S, 0, 0, state=state)
        if (state, signal) in uplinks.TRANSITIONS:
            moved.move(signal)
            assert moved.state is uplinks.TRANSITIONS[state, signal]
        else:
            with pytest.raises(KeyError):
                moved.move(signal)


class World:
    """An uplink, a store that grows, and a broker that refuses, hangs up and acks as chance will have it."""

    def __init__(self, seed: int, window: int, *, central: bool) -> None:
        self.rng = random.Random(seed)
        self.window = window
        self.lanes = {LaneKey(epoch, stream): self.rng.randint(0, 30) for epoch in ("old", "new") for stream in "ab"}
        self.arrived: dict[LaneKey, set[int]] = {key: set() for key in self.lanes}
        self.uplink = make(central=central)
        self.flying: dict[int, tuple[LaneKey, int, int]] = {}
        self.now = 0.0
        self._tags = itertools.count()

    def store(self) -> None:
        self.lanes[self.rng.choice(list(self.lanes))] += self.rng.randint(0, 5)
        self.refresh()

    def refresh(self) -> None:
        self.uplink.refresh(["old", "new"], [stored(last, key) for key, last in self.lanes.items() if last], self.now)

    def fly(self) -> None:
        while (turn := self.uplink.next(self.now)) is not None:
            last = min(turn.up_to, turn.after + self.rng.randint(1, turn.rows))
            tag = next(self._tags)
            self.flying[tag] = (turn.key, turn.after, last)
            self.uplink.sent(turn.key, last, tag)
            assert self.uplink.in_flight <= self.window

    def land(self, refuse: float = 0.3) -> None:
        if not self.flying:
            return
        tag = next(iter(self.flying))
        key, after, last = self.flying.pop(tag)
        if self.rng.random() < refuse:
            self.uplink.puback(tag, NO_SUBSCRIBER, "nobody", self.now)
        else:
            self.arrived[key] |= set(range(after + 1, last + 1))
            self.uplink.puback(tag, 0, "", self.now)

    def reconnect(self) -> None:
        self.uplink.closed()
        self.flying.clear()
        self.refresh()
        self.uplink.opened(self.window, self.now)

    def ack(self) -> None:
        self.uplink.confirm(self.rng.choice(["old", "new"]), {self.rng.choice("ab"): self.rng.randint(0, 40)}, self.now)

    def check(self) -> None:
        for key, seq in [*self.uplink.acked().items(), *self.uplink.published().items()]:
            assert set(range(1, seq + 1)) <= self.arrived[key], "acknowledged what did not arrive"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), window=st.integers(1, 6), central=st.booleans())
def test_whatever_the_broker_does_everything_arrives_and_nothing_is_claimed_that_did_not(
    seed: int, window: int, central: bool
) -> None:
    world = World(seed, window, central=central)
    actions = [world.store, world.fly, world.fly, world.land, world.land, world.land, world.ack, world.reconnect]
    for _ in range(120):
        world.now += world.rng.random()
        world.rng.choice(actions)()
        world.check()
    world.reconnect()
    for _ in range(2000):  # from here on the broker works
        world.now += 1.0
        world.fly()
        if not world.flying:
            break
        world.land(refuse=0.0)
    world.check()
    assert {key: world.uplink.published().get(key, 0) for key in world.lanes} == world.lanes


def test_the_wait_before_a_new_connection_grows_to_a_bound_and_starts_again_after_success() -> None:
    backoff = Backoff(lambda: 1.0)
    waits = [backoff.wait_s() for _ in range(12)]
    assert waits == sorted(waits)
    assert waits[-1] == MOST_S
    backoff.reset()
    assert backoff.wait_s() == waits[0]
