"""The console over a real socket: health, facts, stopping."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from typing import Any

import httpx
import msgspec
import pytest

from edged.console.app import Console
from edged.console.server import CONNECTIONS, local_address, open_socket
from edged.errors import ConfigError
from edged.status import BufferFacts, EngineFacts, PipelineFacts, Status
from tests.support.console import MemoryInlet, PlainModel, live_console, raw_exchange

FRAME = {"inputs": [{"name": "image", "shape": [2, 2], "datatype": "FP32", "data": [0, 1, 0, 1]}]}


def status_with(state: str, *, engine: str = "ready", buffer: str = "ok", reasons: tuple[str, ...] = ()) -> Status:
    return Status(
        device="bench",
        version="0.1.0",
        state=state,
        reasons=reasons,
        engines=(EngineFacts(name="onnxruntime", model="digits@1.0.0", state=engine),),
        pipelines=(
            PipelineFacts(
                name="digits",
                model="digits@1.0.0",
                engine="onnxruntime",
                results=0,
                errors=0,
                queued=0,
                queue_limit=64,
                policy="block",
            ),
        ),
        buffer=BufferFacts(epoch="epoch-1", state=buffer),
    )


@pytest.mark.parametrize(
    ("hosts", "told"),
    [
        (["0.0.0.0"], "127.0.0.1"),
        (["::"], "::1"),
        (["0.0.0.0", "127.0.0.1"], "127.0.0.1"),
        (["127.0.0.2", "127.0.0.1"], "127.0.0.2"),
    ],
)
def test_the_address_that_is_told_is_one_that_this_device_reaches(hosts: list[str], told: str) -> None:
    with contextlib.ExitStack() as listeners:
        sockets = [listeners.enter_context(open_socket(host, 0)) for host in hosts]
        host, port = local_address(sockets)
        assert host == told
        socket.create_connection((host, port), timeout=5).close()


def test_health_follows_the_progress_predicate() -> None:
    progress = [True]
    with live_console(lambda: status_with("starting"), progress=lambda: progress[0]) as live:
        assert live.client.get("/health").json() == {"live": True}
        assert live.client.get("/v2/health/live").status_code == 200
        progress[0] = False
        stuck = live.client.get("/health")
        assert (stuck.status_code, stuck.json()) == (503, {"live": False})


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (status_with("ready"), 200),
        (status_with("starting", engine="starting", reasons=("loading",)), 503),
        (status_with("degraded", reasons=("one pipeline is down",)), 200),
        (status_with("degraded", engine="backoff", reasons=("worker ended",)), 503),
        (status_with("degraded", buffer="failed", reasons=("disk",)), 503),
        (status_with("failed", reasons=("no engine",)), 503),
        (status_with("stopping"), 503),
    ],
)
def test_ready_only_while_frames_are_inferred_and_stored(status: Status, code: int) -> None:
    with live_console(lambda: status, models={"digits": PlainModel()}) as live:
        for path in ("/health/ready", "/v2/health/ready"):
            answer = live.client.get(path)
            assert answer.status_code == code
            assert answer.json() == {"ready": code == 200, "state": status.state, "reasons": list(status.reasons)}
        assert live.client.get("/v2/models/digits/ready").status_code == code


def test_status_is_the_whole_status() -> None:
    status = status_with("degraded", reasons=("x",))
    with live_console(lambda: status) as live:
        assert msgspec.json.decode(live.client.get("/status").content, type=Status) == status


def test_unknown_paths_and_methods_get_the_error_object() -> None:
    with live_console(lambda: status_with("ready")) as live:
        missing = live.client.get("/nothing/here")
        assert (missing.status_code, missing.json()) == (404, {"error": "GET /nothing/here: not found"})
        wrong = live.client.post("/status", json={})
        assert wrong.status_code == 405
        assert sorted(wrong.headers["allow"].split(", ")) == ["GET", "HEAD"]
        assert "error" in wrong.json()


def test_a_fault_of_ours_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Status:
        raise RuntimeError("the status cannot be built")

    with live_console(broken) as live:
        answer = live.client.get("/status")
    assert answer.status_code == 500
    assert "log" in answer.json()["error"]
    assert "the status cannot be built" in caplog.text


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken") as caught:
            open_socket("127.0.0.1", port)
    assert "http" in caught.value.hint and "port = 0" in caught.value.hint


def test_the_same_port_can_be_opened_again_at_once() -> None:
    with live_console(lambda: status_with("ready")) as live:
        live.client.get("/health")
    open_socket("127.0.0.1", live.port).close()


def test_an_answer_in_flight_is_given_before_the_end() -> None:
    arrived = threading.Event()

    async def slowly(_: str) -> None:
        arrived.set()
        await asyncio.sleep(0.2)

    answers: list[httpx.Response] = []
    inlets = {"digits": MemoryInlet(before=slowly)}
    with live_console(lambda: status_with("ready"), models={"digits": PlainModel()}, inlets=inlets) as live:
        ask = threading.Thread(target=lambda: answers.append(live.client.post("/v2/models/digits/infer", json=FRAME)))
        ask.start()
        assert arrived.wait(5)
        began = time.monotonic()
        live.stop()
        stopped_s = time.monotonic() - began
        ask.join(5)
    assert stopped_s < 1
    assert answers[0].status_code == 200


def test_a_request_that_cannot_end_in_time_is_told_to_come_back() -> None:
    arrived = threading.Event()

    async def never(_: str) -> None:
        arrived.set()
        await asyncio.Event().wait()

    answers: list[httpx.Response] = []
    inlets = {"digits": MemoryInlet(before=never)}
    with live_console(lambda: status_with("ready"), models={"digits": PlainModel()}, inlets=inlets) as live:
        ask = threading.Thread(target=lambda: answers.append(live.client.post("/v2/models/digits/infer", json=FRAME)))
        ask.start()
        assert arrived.wait(5)
        began = time.monotonic()
        live.stop()
        stopped_s = time.monotonic() - began
        ask.join(5)
    assert stopped_s < 1
    assert answers[0].status_code == 503
    assert answers[0].headers["retry-after"] == "1"
    assert "stopping" in answers[0].json()["error"]


def test_idle_and_stalled_connections_do_not_hold_up_the_stop() -> None:
    with live_console(lambda: status_with("ready"), models={"digits": PlainModel()}, inlets={}) as live:
        live.client.get("/health")  # stays open
        with socket.create_connection(("127.0.0.1", live.port)) as stalled:
            stalled.sendall(
                b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            time.sleep(0.1)
            began = time.monotonic()
            live.stop()
            assert time.monotonic() - began < 1


def test_signal_handlers_stay_as_they_were() -> None:
    def ours(*_: Any) -> None:
        raise AssertionError("not called")

    async def scenario() -> list[Any]:
        console = Console(status=lambda: status_with("ready"), models={}, inlets={})
        up = asyncio.Event()
        task = asyncio.create_task(console.serve([open_socket("127.0.0.1", 0)], started=up.set))
        await up.wait()
        during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return [*during, signal.getsignal(signal.SIGTERM)]

    kept = {number: signal.signal(number, ours) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert asyncio.run(scenario()) == [ours, ours, ours]
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_what_is_not_http_is_refused() -> None:
    with live_console(lambda: status_with("ready")) as live:
        assert raw_exchange(live.port, b"\x16\x03\x01\x02\x00\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        endless = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000
        assert raw_exchange(live.port, endless).startswith(b"HTTP/1.1 400 ")


def test_connections_are_bounded_and_come_back() -> None:
    with live_console(lambda: status_with("ready")) as live, contextlib.ExitStack() as crowd:
        for _ in range(CONNECTIONS):
            crowd.enter_context(socket.create_connection(("127.0.0.1", live.port)))
        assert live.client.get("/health").status_code == 503
        crowd.close()
        deadline = time.monotonic() + 5
        while live.client.get("/health").status_code != 200:
            assert time.monotonic() < deadline, "the console did not recover"
            time.sleep(0.05)
