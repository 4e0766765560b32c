"""The daemon's side of a connection with one worker: greet it, load a model, call it. One life, no second chances.

Up to ``SLOTS`` calls are with the worker: it answers in order, so the call at the head has the deadline, and the next
one is given its own when it becomes the head. Anything that is not a legal answer in time sets ``lost``; whoever owns
the worker then ends the process and calls ``close``, which fails every call.
"""

from __future__ import annotations

import array
import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edged.domain import Array
from edged.engines.layout import SLOTS, Role
from edged.engines.memory import READOUT, SharedMemory
from edged.engines.wire import (
    MAX_PACKET,
    REFUSED,
    RUN,
    VERSIONS,
    Conversation,
    Error,
    Gpu,
    Hello,
    Kind,
    Load,
    Loaded,
    Message,
    Progress,
    Refuse,
    Side,
    common_version,
    parse_done,
)
from edged.engines.wire_json import WireError, encode_object
from edged.errors import EngineError, EngineLost, EngineRefused
from edged.ports import Inference

HUNG_UP = "closed its socket"  # how the death of a worker looks from here

Rights = tuple[int, int, "array.array[int]"]
T = TypeVar("T")


class WorkerAway(Exception):
    """This call was never handed to a worker: the connection ended while it waited for a slot."""


@dataclass(eq=False, slots=True)
class _Call:
    """A question to the worker. ``read`` takes its answer out of the slot the moment it arrives."""

    kind: Kind
    number: int
    slot: int | None
    since_ns: int  # CLOCK_BOOTTIME: sent, or become the one that the worker is at
    read: Callable[[int], Any]
    answer: asyncio.Future[Any]


class WorkerClient:
    """One connection. ``lost`` is set to the reason once the worker can no longer be talked to."""

    def __init__(self, sock: socket.socket, deadline_s: float, versions: tuple[int, int] = VERSIONS) -> None:
        sock.setblocking(False)
        self.stage = ""
        self.gpu: Gpu | None = None  # as the worker told it last
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._sock = sock
        self._deadline_s = deadline_s
        self._versions = versions
        self._talk = Conversation(Side.DAEMON)
        self._buffer = bytearray(MAX_PACKET + 1)
        self._hello: asyncio.Future[Hello] = self._loop.create_future()
        self._loaded: asyncio.Future[Loaded] = self._loop.create_future()
        self._memory: SharedMemory | None = None
        self._calls: deque[_Call] = deque()
        self._number = 0
        self._free = list(range(SLOTS))
        self._turn = asyncio.Semaphore(SLOTS)
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock.fileno(), self._receive)

    # Questions

    async def greet(self, engine: str) -> Hello:
        """Wait for the worker's HELLO and agree on a protocol. Raises EngineLost after refusing it."""
        hello = await self._unless_lost(self._hello)
        version = common_version(hello.protocol, self._versions)
        reason = ""
        if version is None:
            mine, theirs = self._versions, hello.protocol
            reason = f"it speaks protocol {theirs[0]} to {theirs[1]}, this daemon {mine[0]} to {mine[1]}"
        elif hello.engine != engine:
            reason = f"it is the engine {hello.engine!r}, wanted was {engine!r}"
        if version is None or reason:
            self._send(Kind.REFUSE, body=encode_object({"reason": reason}))
            raise EngineLost(f"refused the worker: {reason}", "install the same release of edged on both sides")
        self._send(Kind.WELCOME, body=encode_object({"protocol": version}))
        self._talk.version = version
        return hello

    async def load(self, load: Load, memory: SharedMemory) -> Loaded:
        """Have the model loaded. Raises EngineError with the worker's own reason, EngineLost."""
        self._memory = memory
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory.fd]))]
        self._send(Kind.LOAD, body=load.encode(), rights=rights)
        return await self._unless_lost(self._loaded)

    async def infer(self, inputs: Mapping[str, Array]) -> Inference:
        """Run windows, as ``edged.ports.Engine`` says. Raises WorkerAway if it was not tried."""
        memory = self._standing()
        batch = _batch(memory, Role.INPUT, inputs)
        slot = await self._slot()

        def read(engine_ns: int) -> Inference:
            return Inference(memory.arrays.of(slot, Role.READOUT, batch)[READOUT].copy(), engine_ns)

        inference: Inference = await self._run(Kind.INFER, slot, batch, {Role.INPUT: inputs}, read)
        if not np.isfinite(inference.readout).all():
            raise EngineError("the engine's readout is not finite", "check the model's weights")
        return inference

    async def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run one time step, as ``edged.ports.Engine`` says. Raises WorkerAway if it was not tried."""
        memory = self._standing()
        batch = _batch(memory, Role.STEP_INPUT, inputs)
        if states and _batch(memory, Role.STATE, states) != batch:
            raise EngineError("inputs and states differ in their batch")
        slot = await self._slot()

        def read(_: int) -> tuple[dict[str, Array], dict[str, Array]]:
            outputs, after = (memory.arrays.of(slot, role, batch) for role in (Role.STEP_OUTPUT, Role.NEXT_STATE))
            return _copies(outputs), _copies(after)

        data = {Role.STEP_INPUT: inputs, Role.STATE: states}
        answer: tuple[dict[str, Array], dict[str, Array]] = await self._run(Kind.STEP, slot, batch, data, read)
        return answer

    def ping(self) -> None:
        """Ask an idle worker for a sign of life; without one within the deadline it is lost."""
        if not self._calls and not self.lost.done():
            self._ask(Kind.PING, None, b"", lambda _: None)

    def oldest_pending_ns(self) -> int | None:
        """Since when the worker is at its present call (CLOCK_BOOTTIME), None when it has none."""
        return self._calls[0].since_ns if self._calls else None

    def hang_up(self) -> None:
        """The process has ended: read what it still said, then count it as lost."""
        while not self.lost.done():
            self._receive(last=True)

    def say_bye(self) -> None:
        """Ask the worker to end."""
        if not self.lost.done():
            self._loop.remove_reader(self._sock.fileno())
            try:
                self._send(Kind.BYE)
            except WireError:
                self._sock.shutdown(socket.SHUT_WR)  # not greeted yet: the end of the socket says the same
            self._lose("was told to end")

    def close(self, error: EngineError) -> None:
        """Give the connection up: every call fails with ``error``, whoever waits for a slot with WorkerAway."""
        self._lose(str(error))
        self._closed = True
        self._sock.close()
        if self._memory is not None:
            self._memory.close()
        while self._calls:
            call = self._calls.popleft()
            if call.kind is Kind.PING:
                call.answer.cancel()
            else:
                _fail(call.answer, error)
        self._turn.release()  # wakes the first who waits for a slot, who wakes the next

    # Calls

    def _standing(self) -> SharedMemory:
        if self._memory is None or self._closed:
            raise WorkerAway
        return self._memory

    async def _slot(self) -> int:
        await self._turn.acquire()
        if self.lost.done():
            self._turn.release()  # wakes the next one, who finds the same
            raise WorkerAway
        return self._free.pop()

    def _give_back(self, slot: int) -> None:
        self._free.append(slot)
        self._turn.release()

    async def _run(
        self, kind: Kind, slot: int, batch: int, data: Mapping[Role, Mapping[str, Array]], read: Callable[[int], Any]
    ) -> Any:
        try:
            for role, values in data.items():
                self._write(slot, role, batch, values)
            answer = self._ask(kind, slot, RUN.pack(slot, batch), read)
        except BaseException:  # a cancellation too: what was begun is undone, and it goes on
            self._give_back(slot)
            raise
        return await answer

    def _write(self, slot: int, role: Role, batch: int, values: Mapping[str, Array]) -> None:
        for name, view in self._standing().arrays.of(slot, role, batch).items():
            np.copyto(view, values[name], casting="no")

    def _ask(self, kind: Kind, slot: int | None, body: bytes, read: Callable[[int], Any]) -> asyncio.Future[Any]:
        self._number = (self._number + 1) & 0xFFFFFFFF
        call = _Call(kind, self._number, slot, _now_ns(), read, self._loop.create_future())
        self._calls.append(call)
        if self._timer is None:
            self._timer = self._loop.call_later(self._deadline_s, self._check_deadline)
        self._send(kind, call.number, body)
        return call.answer

    def _check_deadline(self) -> None:
        """Runs when the call that was at the head would be overdue: one timer for thousands of calls."""
        self._timer = None
        if not self._calls:
            return
        head = self._calls[0]
        left_s = self._deadline_s - (_now_ns() - head.since_ns) / 1e9
        if left_s <= 0:
            self._lose(f"did not answer {head.kind.name} within {self._deadline_s:g} s")
        else:
            self._timer = self._loop.call_later(left_s, self._check_deadline)

    # The socket

    def _send(self, kind: Kind, call: int = 0, body: bytes = b"", rights: Iterable[Rights] = ()) -> None:
        packet = self._talk.pack(kind, call, body)
        try:
            if rights:
                self._sock.sendmsg([packet], rights)
            else:
                self._sock.send(packet)
        except (BrokenPipeError, ConnectionResetError):
            self._lose(HUNG_UP)
        except OSError as error:
            self._lose(f"cannot be written to: {error}")

    def _receive(self, last: bool = False) -> None:
        try:
            count = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            if last:  # a child of the worker holds its end open
                self._lose(HUNG_UP)
            return
        except ConnectionResetError:  # it died with a question of ours unread
            count = 0
        except OSError as error:
            self._lose(f"cannot be read: {error}")
            return
        if count == 0:
            self._lose(HUNG_UP)
            return
        try:
            self._take(self._talk.unpack(memoryview(self._buffer)[:count]))
        except WireError as error:
            self._lose(f"broke the protocol: {error}")

    def _take(self, message: Message) -> None:
        if message.kind is Kind.DONE:
            engine_ns = parse_done(message.body)
            call = self._answered(message)
            _set(call.answer, call.read(engine_ns))
        elif message.kind is Kind.PONG:
            self._answered(message)
            self.gpu = Gpu.parse(message.body) if message.body else None
        elif message.kind is Kind.HELLO:
            _set(self._hello, Hello.parse(message.body))
        elif message.kind is Kind.PROGRESS:
            self.stage = Progress.parse(message.body).stage
        elif message.kind is Kind.LOADED:
            _set(self._loaded, Loaded.parse(message.body))
        elif message.kind is Kind.REFUSE:
            self._lose(f"refused this daemon: {Refuse.parse(message.body).reason}")
        else:
            self._failed(message, Error.parse(message.body))

    def _failed(self, message: Message, error: Error) -> None:
        if not self._loaded.done():
            kind = EngineRefused if error.code == REFUSED else EngineError
            _fail(self._loaded, kind(f"cannot load the model: {error.message}"))
        elif error.about == "engine":
            self._lose(f"reported that it broke: {error.message}")
        else:
            _fail(self._answered(message).answer, EngineError(error.message))

    def _answered(self, message: Message) -> _Call:
        """The call at the head, whose answer this must be."""
        head = self._calls[0] if self._calls else None
        wanted = Kind.PONG if head is not None and head.kind is Kind.PING else Kind.DONE
        if head is None or head.number != message.call or message.kind not in (wanted, Kind.ERROR):
            raise WireError(f"{message.kind.name} for call {message.call}, which is not the next to be answered")
        self._calls.popleft()
        if self._calls:
            self._calls[0].since_ns = _now_ns()
        if head.slot is not None:
            self._give_back(head.slot)
        return head

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self._loop.remove_reader(self._sock.fileno())
            if self._timer is not None:
                self._timer.cancel()
            self.lost.set_result(reason)

    async def _unless_lost(self, future: asyncio.Future[T]) -> T:
        either: list[asyncio.Future[Any]] = [future, self.lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        raise EngineLost(f"the worker {self.lost.result()}")


def _batch(memory: SharedMemory, role: Role, values: Mapping[str, Array]) -> int:
    """The batch that the arrays hold. Raises EngineError unless every one is there, of its type and shape."""
    first = memory.first[role]
    value = values.get(first.name)
    batch = value.shape[first.sequence] if value is not None and value.ndim > first.sequence else 0
    if not 1 <= batch <= memory.layout.max_batch:
        raise EngineError(f"{first.name} has a batch of {batch}; this engine takes 1 to {memory.layout.max_batch}")
    views = memory.arrays.of(0, role, batch)
    if values.keys() != views.keys():
        raise EngineError(f"got {', '.join(values)}; the model has {', '.join(views)}")
    for name, view in views.items():
        value = values[name]
        if value.shape != view.shape or value.dtype != view.dtype:
            raise EngineError(f"{name} is {value.dtype} {value.shape}, wanted is {view.dtype} {view.shape}")
    return batch


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value.copy() for name, value in arrays.items()}


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _set(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: EngineError) -> None:
    if not future.done():
        future.set_exception(error)
