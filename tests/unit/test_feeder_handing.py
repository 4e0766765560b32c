"""Handing in: one key until the daemon answers, the latest frame first, acknowledged in order, accounts that close."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.feeders import handing
from edged.feeders.account import Account, Counts
from edged.feeders.daemon import Away, Broken, Content, Daemon, Handed, Refused
from edged.feeders.handing import GIVE_UP, Courier, Latest
from edged.feeders.inbox import OWN_BYTES, Inbox
from edged.feeders.message import Message
from edged.feeders.mqtt import Acks, Pending
from tests.support.device import wait_until

CONTENT = Content("npy", b"x")
STORED = Handed("7", 1, duplicate=False)
Answer = Handed | Refused | Away


@dataclass
class FakeDaemon:
    """Answers by a script, then always with ``STORED``."""

    script: list[Answer] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    before: Callable[[], object] = lambda: None

    def hand(self, key: str, content: Content) -> Handed | Refused:
        self.asked.append(key)
        self.before()
        answer = self.script.pop(0) if self.script else STORED
        if isinstance(answer, Away):
            raise answer
        return answer

    def close(self) -> None:
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handing, "FIRST_S", 0.001)
    monkeypatch.setattr(handing, "MOST_S", 0.002)


def courier(daemon: FakeDaemon, account: Account, stop: threading.Event | None = None) -> Courier:
    made = Courier(Path("/none"), "digits", account, stop or threading.Event())
    made._daemon = daemon  # type: ignore[assignment]  # the fake answers what a Courier asks
    return made


@pytest.mark.usefixtures("quick")
def test_a_frame_is_handed_in_with_its_key_until_there_is_an_answer() -> None:
    daemon = FakeDaemon([Away("gone"), Away("busy"), Broken("fault"), Away("gone"), Handed("7", 3, duplicate=True)])
    account = Account("yard")
    assert courier(daemon, account).hand("k", CONTENT) == Handed("7", 3, duplicate=True)
    assert daemon.asked == ["k"] * 5
    assert account.counts == Counts(handed=1, duplicates=1)


@pytest.mark.usefixtures("quick")
def test_a_frame_that_breaks_the_daemon_is_given_up_and_another_goes_on() -> None:
    daemon, account = FakeDaemon([Broken("fault") for _ in range(GIVE_UP + 1)]), Account("yard")
    one = courier(daemon, account)
    outcome = one.hand("bad", CONTENT)
    assert isinstance(outcome, Refused) and "fault" in outcome.reason
    assert one.hand("good", CONTENT) == STORED
    assert account.counts == Counts(handed=1, refused=1)
    assert len(daemon.asked) == GIVE_UP + 2


@pytest.mark.usefixtures("quick")
def test_a_daemon_that_is_away_is_waited_for_longer_than_one_that_breaks() -> None:
    daemon, account = FakeDaemon([Away("gone") for _ in range(5 * GIVE_UP)]), Account("yard")
    assert courier(daemon, account).hand("k", CONTENT) == STORED
    assert account.counts == Counts(handed=1)


def test_a_stop_ends_the_wait_and_says_that_the_frame_has_not_ended() -> None:
    stop, account = threading.Event(), Account("yard")
    daemon = FakeDaemon([Away("gone") for _ in range(100)])
    threading.Timer(0.2, stop.set).start()
    begun = time.monotonic()
    assert courier(daemon, account, stop).hand("k", CONTENT) is None
    assert time.monotonic() - begun < 2
    assert account.counts == Counts()


def test_of_what_waits_for_a_slow_daemon_the_latest_is_handed_in() -> None:
    go, account = threading.Event(), Account("yard")
    daemon = FakeDaemon(before=go.wait)
    made: list[int] = []

    def content(number: int) -> Content:
        made.append(number)
        return CONTENT

    latest = Latest(courier(daemon, account), account)
    thread = threading.Thread(target=latest.serve)
    thread.start()
    for number in range(10):
        account.count(received=1)
        latest.put(str(number), lambda number=number: content(number))  # type: ignore[misc]  # mypy cannot infer defaults
        if number == 0:
            wait_until(lambda: daemon.asked == ["0"], 10)
    go.set()
    latest.finish(10)
    thread.join(10)
    assert daemon.asked == ["0", "9"]
    assert made == [0, 9]  # a dropped frame costs nothing
    assert account.counts == Counts(received=10, handed=2, dropped=8)


def test_a_stop_counts_what_nobody_will_hand_in() -> None:
    stop, account = threading.Event(), Account("yard")
    latest = Latest(courier(FakeDaemon([Away("gone") for _ in range(100)]), account, stop), account)
    thread = threading.Thread(target=latest.serve)
    thread.start()
    latest.put("a", lambda: CONTENT)
    wait_until(lambda: latest._busy, 10)
    latest.put("b", lambda: CONTENT)
    stop.set()
    latest.finish(10)
    thread.join(10)
    assert account.counts == Counts(dropped=2)


class FakeClient:
    def __init__(self) -> None:
        self.acked: list[int] = []

    def ack(self, mid: int, qos: int) -> None:
        assert qos == 1
        self.acked.append(mid)


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(1, 9)), st.integers(0, 8))
def test_messages_are_acknowledged_in_their_order_and_never_after_their_connection(order: list[int], last: int) -> None:
    client: Any = FakeClient()
    acks = Acks(client)
    pending = {mid: Pending(Message("t", b"", {}), mid, 1, acks) for mid in range(1, 9)}
    for one in pending.values():
        acks.add(one)
    done: set[int] = set()
    for number, mid in enumerate(order):
        if number == last:
            acks.end()
        acks.done(pending[mid])
        done |= {mid} if number < last else set()
        expected = next((mid - 1 for mid in range(1, 10) if mid not in done), 8)
        assert client.acked == list(range(1, expected + 1))


def test_refusals_are_told_by_name_but_not_each(caplog: pytest.LogCaptureFixture) -> None:
    account = Account("yard")
    with caplog.at_level(logging.INFO):
        for number in range(50):
            account.refuse(f"f{number}", "bad size: 3 bytes")
            account.refuse(f"f{number}", f"reason {number}: more")
        account.forget_reasons()
    told = [getattr(record, "reason", "") for record in caplog.records]
    assert told.count("bad size: 3 bytes") == 1
    assert 5 <= len(told) <= 12
    assert account.counts == Counts(refused=100)
    assert any(getattr(record, "count", 0) == 50 for record in caplog.records)


def test_a_state_that_swings_is_not_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    account = Account("yard")
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            account.say("running")
            account.say("waiting")
    assert [record.getMessage() for record in caplog.records] == ["running", "waiting"]
    assert account.line() == "waiting; received=0 handed=0 refused=0 dropped=0"


def test_without_a_daemon_the_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(Away, match=r"http\.sock"):
        Daemon(tmp_path / "http.sock", "digits").model()


def pending(size: int, acks: Acks) -> Pending:
    return Pending(Message("t", bytes(size - OWN_BYTES), {}), 1, 1, acks)


def test_an_inbox_holds_so_many_bytes_and_whoever_brings_more_waits() -> None:
    client: Any = FakeClient()
    inbox, acks = Inbox[Pending](2100), Acks(client)
    assert inbox.put(pending(1500, acks), waits=False)
    assert not inbox.put(pending(700, acks), waits=False)
    waiting = threading.Thread(target=inbox.put, args=(pending(700, acks),), kwargs={"waits": True}, daemon=True)
    waiting.start()
    assert inbox.get(1) is not None
    waiting.join(10)
    assert inbox.get(1) is not None
    assert inbox.get(0) is None
    assert inbox.put(pending(9000, acks), waits=False)  # alone, the largest frame has its place


def test_what_an_ended_connection_left_is_forgotten_and_nobody_waits_for_it() -> None:
    client: Any = FakeClient()
    inbox, old, new = Inbox[Pending](2100), Acks(client), Acks(client)
    assert inbox.put(pending(1500, old), waits=False)
    took: list[bool] = []
    waiting = threading.Thread(target=lambda: took.append(inbox.put(pending(1500, old), waits=True)), daemon=True)
    waiting.start()
    old.end()
    assert inbox.put(pending(600, new), waits=False)
    assert inbox.purge() == 1
    waiting.join(10)
    assert took in ([False], [True])  # it came in when there was room, or went away
    left = [inbox.get(0), inbox.get(0)]
    assert [one.acks for one in left if one is not None and not one.is_stale] == [new]
