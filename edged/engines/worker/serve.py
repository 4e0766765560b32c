"""The worker's side of a connection: greet, load one model, answer calls until the daemon says BYE or is gone.

Knows no engine and no NumPy. One thread, blocking; calls are answered in the order they came. What is in a slot is the
engine's business.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import platform
import socket
import time
import traceback

from edged.engines.wire import (
    DONE,
    MAX_PACKET,
    REFUSED,
    VERSIONS,
    Conversation,
    Error,
    Exit,
    Hello,
    Kind,
    Load,
    Loaded,
    Message,
    Progress,
    Refuse,
    Side,
    Welcome,
    parse_run,
)
from edged.engines.wire_json import WireError, encode_object
from edged.engines.worker.engine import Engine, FrameFailed, LoadedModel, ModelRefused, OnGpu


class Refused(Exception):
    """One side cannot talk to the other."""


class Gone(Exception):
    """The daemon said BYE or closed the socket."""


class Server:
    """One connection. ``versions`` are the protocols to offer; another range than ours is for tests."""

    def __init__(self, sock: socket.socket, versions: tuple[int, int] = VERSIONS) -> None:
        self._sock = sock
        self._versions = versions
        self._talk = Conversation(Side.WORKER)
        self._buffer = bytearray(MAX_PACKET + 1)

    def serve(self, name: str, engine: Engine) -> Exit:
        """Serve until the end and say how the process is to exit."""
        try:
            self._greet(name, engine.version)
            load, memory = self._receive_load()
            model = self._load(engine, load, memory)
            if model is None:
                return Exit.LOAD_FAILED
            while True:
                self._answer(model, load, self._receive())
        except (Gone, ConnectionError):
            return Exit.OK
        except Refused as error:
            print(error, flush=True)
            return Exit.REFUSED
        except WireError as error:
            print(f"the daemon broke the protocol: {error}", flush=True)
            return Exit.GARBAGE

    def _greet(self, name: str, version: str) -> None:
        hello = Hello(self._versions, name, version, platform.python_version(), os.getpid())
        self._send(Kind.HELLO, body=encode_object(hello._asdict()))
        answer = self._receive()
        if answer.kind is Kind.REFUSE:
            raise Refused(f"the daemon refused this worker: {Refuse.parse(answer.body).reason}")
        chosen = Welcome.parse(answer.body).protocol
        if not self._versions[0] <= chosen <= self._versions[1]:
            reason = f"this worker speaks protocol {self._versions[0]} to {self._versions[1]}, not {chosen}"
            self._send(Kind.REFUSE, body=encode_object({"reason": reason}))
            raise Refused(f"refused the daemon: {reason}")
        self._talk.version = chosen

    def _receive_load(self) -> tuple[Load, mmap.mmap]:
        message, fds = self._receive_with_fds()
        try:
            load = Load.parse(message.body)
            return load, _map(fds, load)
        finally:
            for fd in fds:
                os.close(fd)  # the map keeps the memory

    def _load(self, engine: Engine, load: Load, memory: mmap.mmap) -> LoadedModel | None:
        try:
            model = engine.load(load, memory, self._progress)
        except Exception as error:  # the worker's edge: whatever an SDK raises becomes one message
            traceback.print_exc()
            self._send_error(0, REFUSED if isinstance(error, ModelRefused) else "load", error, "engine")
            return None
        self._send(Kind.LOADED, body=encode_object(Loaded(model.plan, model.timings)._asdict()))
        return model

    def _answer(self, model: LoadedModel, load: Load, message: Message) -> None:
        if message.kind is Kind.PING:
            body = encode_object(model.gpu()._asdict()) if isinstance(model, OnGpu) else b""
            self._send(Kind.PONG, message.call, body)
            return
        slot, batch = parse_run(message.body, load.layout)
        run = model.infer if message.kind is Kind.INFER else model.step
        started = time.perf_counter_ns()
        try:
            run(slot, batch)
        except FrameFailed as error:
            self._send_error(message.call, "frame", error, "frame")
        except Exception as error:  # the worker's edge: the daemon decides what becomes of this engine
            traceback.print_exc()
            self._send_error(message.call, "run", error, "engine")
        else:
            self._send(Kind.DONE, message.call, DONE.pack(time.perf_counter_ns() - started))

    def _progress(self, stage: str) -> None:
        self._send(Kind.PROGRESS, body=encode_object(Progress(stage)._asdict()))

    def _send_error(self, call: int, code: str, error: Exception, about: str) -> None:
        text = str(error) or type(error).__name__
        self._send(Kind.ERROR, call, encode_object(Error(code, text[:1000], about)._asdict()))

    def _send(self, kind: Kind, call: int = 0, body: bytes = b"") -> None:
        self._sock.send(self._talk.pack(kind, call, body))

    def _receive(self) -> Message:
        return self._unpack(self._sock.recv_into(self._buffer))

    def _receive_with_fds(self) -> tuple[Message, list[int]]:
        fds = array.array("i")
        count, ancillary, _, _ = self._sock.recvmsg_into([self._buffer], socket.CMSG_SPACE(4 * fds.itemsize))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return self._unpack(count), list(fds)

    def _unpack(self, count: int) -> Message:
        if count == 0:
            raise Gone
        message = self._talk.unpack(memoryview(self._buffer)[:count])
        if message.kind is Kind.BYE:
            raise Gone
        return message


def _map(fds: list[int], load: Load) -> mmap.mmap:
    if len(fds) != 1:
        raise WireError(f"LOAD came with {len(fds)} descriptors")
    try:
        seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
    except OSError:
        raise WireError("LOAD came with a descriptor that is not a memfd") from None
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    size = os.fstat(fds[0]).st_size
    if seals & wanted != wanted or size != load.layout.size:
        raise WireError(f"LOAD came with {size} bytes, sealed {seals:#x}; wanted {load.layout.size}, {wanted:#x}")
    return mmap.mmap(fds[0], size)
