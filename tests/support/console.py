"""Parts for tests of the console: a model, an inlet that stores in memory, and a console on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from edged.console.app import Console
from edged.console.server import open_socket
from edged.domain import Array, FrameId, Kind, Payload, Prediction, Receipt
from edged.ports import Ended, Inlet, Model, TensorSpec
from edged.sources.decode import decode
from edged.status import Status


@dataclass
class PlainModel:
    """A model of one input, as the console sees it."""

    name: str = "digits"
    version: str = "1.0.0"
    digest: str = "ab" * 32
    path: Path = Path("digits")
    timesteps: int = 4
    classes: int = 3
    inputs: tuple[TensorSpec, ...] = (TensorSpec("image", "float32", (2, 2)),)
    states: tuple[TensorSpec, ...] = ()
    output: str = "y"

    def encode(self, payload: Payload) -> dict[str, Array]:
        raise AssertionError("the console does not encode")

    def decode(self, readout: NDArray[np.float32]) -> list[Prediction]:
        raise AssertionError("the console does not decode")


@dataclass
class MemoryInlet:
    """Answers with the sum of the frame as its class, once a key; ``before`` runs before a frame is stored."""

    before: Callable[[str], Awaitable[None]] | None = None
    stored: dict[str, Receipt] = field(default_factory=dict)
    seen: dict[str, Array] = field(default_factory=dict)
    ends: dict[str, Ended | Exception] = field(default_factory=dict)

    def forget(self) -> None:
        self.before = None
        self.stored.clear()
        self.seen.clear()
        self.ends.clear()

    async def infer(self, key: str, payload: Payload) -> Ended:
        self.seen[key] = payload if isinstance(payload, np.ndarray) else payload.t_us
        if self.before is not None:
            await self.before(key)
        if key in self.ends:
            end = self.ends[key]
            if isinstance(end, Exception):
                raise end
            return end
        first = self.stored.get(key)
        if first is not None:
            receipt = Receipt(first.epoch, first.stream, first.seq, first.kind, first.body, duplicate=True)
        else:
            receipt = result(len(self.stored) + 1, int(self.seen[key].sum()))
            self.stored[key] = receipt
        return Ended(FrameId("http", key), receipt.kind, receipt)


def result(seq: int, index: int) -> Receipt:
    body = json.dumps({"index": index, "label": str(index), "scores": [0.25, 0.5, float(index)]}).encode()
    return Receipt("epoch-1", "digits", seq, Kind.RESULT, body)


def failed(key: str, kind: Kind, code: str, message: str) -> Ended:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    return Ended(FrameId("http", key), kind, Receipt("epoch-1", "digits", 9, kind, body))


@dataclass
class LiveConsole:
    """A console that answers on a real port, in a thread with its own event loop."""

    port: int
    client: httpx.Client
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def live_console(
    status: Callable[[], Status],
    *,
    models: Mapping[str, Model] | None = None,
    inlets: Mapping[str, Inlet] | None = None,
    progress: Callable[[], bool] = lambda: True,
) -> Iterator[LiveConsole]:
    console = Console(status=status, models=models or {}, inlets=inlets or {}, decode=decode, progress=progress)
    listener = open_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with (
        _running(lambda started: console.serve([listener], started=started)) as stop,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, verify=False) as client,
    ):
        yield LiveConsole(port, client, stop)


@contextlib.contextmanager
def _running(serve: Callable[[Callable[[], None]], Coroutine[Any, Any, None]]) -> Iterator[Callable[[], None]]:
    """Run ``serve`` in a thread; yields a function that cancels it and waits for its end."""
    up = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    tasks: list[asyncio.Task[None]] = []
    failures: list[BaseException] = []

    async def body() -> None:
        loops.append(asyncio.get_running_loop())
        tasks.append(asyncio.create_task(serve(up.set)))
        with contextlib.suppress(asyncio.CancelledError):
            await tasks[0]

    def run() -> None:
        try:
            asyncio.run(body())
        except BaseException as error:  # raised again where the test is
            failures.append(error)
            up.set()

    def stop() -> None:
        if thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop may end between the two lines
                loops[0].call_soon_threadsafe(tasks[0].cancel)
        thread.join(10)

    thread = threading.Thread(target=run, name="console under test")
    thread.start()
    try:
        assert up.wait(10), "the console did not start"
        if failures:
            raise failures[0]
        yield stop
    finally:
        stop()
        assert not thread.is_alive(), "the console did not stop"
    if failures:
        raise failures[0]


def raw_exchange(port: int, request: bytes) -> bytes:
    """Send bytes as they are, and read the answer until the peer closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer
