"""One connection after another: what a device that is offline for years must not collect."""

from __future__ import annotations

import time
from pathlib import Path

from cloud_sync.device.link import Broker as Where
from cloud_sync.device.link import Connected, Letter, Link, Lost
from tests.support.broker import Broker, free_port
from tests.support.descriptors import open_descriptors

WILL = Letter("edged/v1/f/d/status", b"{}", "application/json")


def where(port: int) -> Where:
    return Where("127.0.0.1", port, tls=False, client_id="edged/f/d", keepalive_s=30)


def dial(port: int) -> Link:
    """A link that has got as far as it gets."""
    link = Link(where(port), WILL, wake=lambda: None)
    link.dial()
    deadline = time.monotonic() + 10
    while not link.events and time.monotonic() < deadline:
        link.read()
        time.sleep(0.001)
    return link


def test_refused_connections_leave_nothing_open() -> None:
    port, before = free_port(), open_descriptors()
    for _ in range(50):
        link = dial(port)
        (lost,) = link.events
        assert isinstance(lost, Lost)
        assert "Connection refused" in lost.reason
        link.drop()
    assert open_descriptors() <= before + 2


def test_dropped_connections_leave_nothing_open_and_say_nothing_more(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker:
        before = open_descriptors()
        for _ in range(50):
            link = dial(broker.port)
            assert isinstance(link.events.popleft(), Connected)
            link.drop()
            assert link.socket is None
        assert open_descriptors() <= before + 2
        kept = [dial(broker.port) for _ in range(5)]
        assert open_descriptors() >= before + 5, "the count sees a connection that is open"
        for link in kept:
            link.drop()
