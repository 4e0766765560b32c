"""Both ends of the wire against a peer that is not ours: another version, garbage, wrong memory, an old interpreter."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import mmap
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edged
from edged.engines.client import WorkerClient
from edged.engines.layout import Layout, Role, Tensor, lay_out
from edged.engines.memory import SharedMemory
from edged.engines.process import BOOT, command
from edged.engines.wire import (
    HEADER,
    MAGIC,
    RUN,
    Conversation,
    Error,
    Exit,
    Hello,
    Kind,
    Load,
    Message,
    Refuse,
    Side,
)
from edged.engines.wire_json import encode_object
from edged.engines.worker.__main__ import ENGINES
from edged.errors import EngineError, EngineLost
from tests.support import fault_engine
from tests.support.descriptors import open_descriptors
from tests.support.parts import optional

ROOT = Path(__file__).parents[2]
FILE = ["--engine-file", fault_engine.__file__]
LAYOUT = lay_out(1, 4, [(Role.INPUT, Tensor("x", "float32", (8,))), (Role.READOUT, Tensor("readout", "float32", (3,)))])
LOAD = Load("m@1", "d", "/bundle", "/plans", "/cache", 5.0, LAYOUT)


class Daemon:
    """The daemon's end of a real worker's socket, for a test to play with."""

    def __init__(self, python: str = sys.executable) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.talk = Conversation(Side.DAEMON)
        arguments = command(python, ["echo", "--fd", str(theirs.fileno()), "--parent", str(os.getpid()), *FILE])
        self.process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[theirs.fileno()], text=True
        )
        theirs.close()

    def receive(self) -> Message:
        return self.talk.unpack(self.sock.recv(1 << 20))

    def send(self, kind: Kind, call: int = 0, body: bytes = b"", fds: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([self.talk.pack(kind, call, body)], rights)

    def greet(self) -> Hello:
        hello = Hello.parse(self.receive().body)
        self.send(Kind.WELCOME, body=encode_object({"protocol": 1}))
        self.talk.version = 1
        return hello

    def load(self) -> SharedMemory:
        self.greet()
        memory = SharedMemory(LAYOUT)
        self.send(Kind.LOAD, body=LOAD.encode(), fds=[memory.fd])
        while self.receive().kind is not Kind.LOADED:
            pass
        return memory

    def end(self) -> tuple[int, str]:
        words, _ = self.process.communicate(timeout=20)
        return self.process.returncode, words


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    one = Daemon()
    yield one
    one.sock.close()
    one.process.kill()
    one.process.communicate()


def test_a_worker_introduces_itself(daemon: Daemon) -> None:
    hello = daemon.greet()
    assert hello == Hello((1, 1), "echo", "1.0", sys.version.split()[0], daemon.process.pid)


def test_a_worker_refuses_a_version_that_it_does_not_speak(daemon: Daemon) -> None:
    daemon.receive()
    daemon.send(Kind.WELCOME, body=encode_object({"protocol": 9}))
    assert Refuse.parse(daemon.receive().body).reason == "this worker speaks protocol 1 to 1, not 9"
    code, words = daemon.end()
    assert code == Exit.REFUSED
    assert "refused the daemon" in words


def test_a_worker_that_is_refused_says_why(daemon: Daemon) -> None:
    daemon.receive()
    daemon.send(Kind.REFUSE, body=encode_object({"reason": "too old"}))
    code, words = daemon.end()
    assert code == Exit.REFUSED
    assert "the daemon refused this worker: too old" in words


@pytest.mark.parametrize(
    "garbage",
    [
        b"x",
        b"\x00" * 64,
        HEADER.pack(MAGIC, 7, Kind.INFER, 1, 0),
        HEADER.pack(MAGIC, 1, 77, 1, 0),
        HEADER.pack(MAGIC, 1, Kind.INFER, 1, 4) + b"\x00",
        HEADER.pack(MAGIC, 1, Kind.INFER, 1, 4) + RUN.pack(2, 1),
        HEADER.pack(MAGIC, 1, Kind.INFER, 1, 4) + RUN.pack(0, 5),
        HEADER.pack(MAGIC, 1, Kind.STEP, 1, 4) + RUN.pack(0, 0),
        HEADER.pack(MAGIC, 1, Kind.LOAD, 1, 2) + b"{}",
        HEADER.pack(MAGIC, 1, Kind.DONE, 1, 0),
        b"edgw" + b"\xff" * 200_000,
    ],
)
def test_a_worker_ends_at_garbage_with_its_own_code(daemon: Daemon, garbage: bytes) -> None:
    daemon.load()
    daemon.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    daemon.sock.send(garbage)
    code, words = daemon.end()
    assert code == Exit.GARBAGE, words
    assert "the daemon broke the protocol" in words


def memfd(layout: Layout, seals: int, size: int | None = None) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, layout.size if size is None else size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (list, "LOAD came with 0 descriptors"),
        (lambda: [memfd(LAYOUT, SEALED), memfd(LAYOUT, SEALED)], "LOAD came with 2 descriptors"),
        (lambda: [os.open("/dev/null", os.O_RDWR)], "not a memfd"),
        (lambda: [memfd(LAYOUT, 0)], "sealed 0x0"),
        (lambda: [memfd(LAYOUT, fcntl.F_SEAL_GROW)], "sealed 0x4"),
        (lambda: [memfd(LAYOUT, SEALED, size=LAYOUT.size - 4096)], "LOAD came with 4096 bytes"),
        (lambda: [memfd(LAYOUT, SEALED, size=LAYOUT.size + 4096)], "LOAD came with 12288 bytes"),
    ],
)
def test_a_worker_refuses_memory_that_could_hurt_it(
    daemon: Daemon, make: Callable[[], list[int]], complaint: str
) -> None:
    daemon.greet()
    fds = make()
    daemon.send(Kind.LOAD, body=LOAD.encode(), fds=fds)
    for fd in fds:
        os.close(fd)
    code, words = daemon.end()
    assert code == Exit.GARBAGE
    assert complaint in words


def test_a_worker_answers_calls_and_pings_and_says_goodbye(daemon: Daemon) -> None:
    memory = daemon.load()
    memory.arrays.of(1, Role.INPUT, 2)["x"][:] = [[1, 2, 3, 4, 5, 6, 7, 8]] * 2
    daemon.send(Kind.INFER, 5, RUN.pack(1, 2))
    daemon.send(Kind.PING, 6)
    assert [daemon.receive()[:2] for _ in range(2)] == [(Kind.DONE, 5), (Kind.PONG, 6)]
    assert memory.arrays.of(1, Role.READOUT, 2)["readout"].tolist() == [[1, 2, 3], [1, 2, 3]]
    daemon.send(Kind.STEP, 7, RUN.pack(0, 1))
    assert Error.parse(daemon.receive().body) == Error("frame", "this engine does not step", "frame")
    daemon.send(Kind.BYE)
    assert daemon.end() == (Exit.OK, "")
    memory.close()


def test_the_memory_cannot_be_resized_by_either_side() -> None:
    memory = SharedMemory(LAYOUT)
    for size in (0, LAYOUT.size - 1, LAYOUT.size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    memory.close()
    unsealed = memfd(LAYOUT, 0)
    os.ftruncate(unsealed, 0)  # the control: without seals it can
    os.close(unsealed)


def test_a_worker_ends_at_the_end_of_its_socket(daemon: Daemon) -> None:
    daemon.load()
    daemon.sock.close()
    assert daemon.end()[0] == Exit.OK


@pytest.mark.parametrize("listener", ["path", "inherited"])
def test_a_worker_can_listen_and_serves_one_daemon(tmp_path: Path, listener: str) -> None:
    path = tmp_path / "worker.sock"
    arguments = [sys.executable, "-m", "edged.engines.worker", "echo", *FILE]
    with contextlib.ExitStack() as stack:
        if listener == "path":
            process = subprocess.Popen([*arguments, "--socket", str(path)], cwd=ROOT)
        else:
            listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            listening.bind(str(path))
            listening.listen(1)
            fd = listening.fileno()
            process = subprocess.Popen([*arguments, "--fd", str(fd)], cwd=ROOT, pass_fds=[fd])
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        deadline = time.monotonic() + 20
        while True:
            try:
                sock.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        hello = Hello.parse(Conversation(Side.DAEMON).unpack(sock.recv(65536)).body)
        assert hello.pid == process.pid
        sock.close()
        assert process.wait(20) == Exit.OK


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nonsense", "--fd", "3"], "no engine is called 'nonsense'; there are"),
        (["onnxruntime"], "one of the arguments --fd --socket is required"),
        (["onnxruntime", "--fd", "3", "--socket", "x"], "not allowed with"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "edged.engines.worker", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.USAGE
    assert complaint in done.stderr


def test_a_worker_whose_parent_is_another_does_not_start() -> None:
    arguments = ["echo", "--fd", "0", "--parent", "1", *FILE]
    done = subprocess.run(command("", arguments), stdin=subprocess.DEVNULL, check=False, timeout=20)
    assert done.returncode == Exit.ORPHANED


# The daemon's side against a worker that is not ours


def fake_worker(packets: list[bytes], versions: tuple[int, int] = (1, 1), engine: str = "echo") -> str:
    """What the client makes of these packets, and what it sent."""

    async def main() -> str:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client = WorkerClient(ours, 1.0, versions)
        theirs.send(packets[0])
        try:
            async with asyncio.timeout(5):
                await client.greet(engine)
                for packet in packets[1:]:
                    theirs.send(packet)
                await client.lost
                return client.lost.result()
        except EngineLost as error:
            return str(error)
        finally:
            client.close(EngineLost("closed"))
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                sent.append(theirs.recv(65536))
            theirs.close()

    sent: list[bytes] = []
    reason = asyncio.run(main())
    return f"{reason} | {sent}"


HELLO = Hello((1, 1), "echo", "1.0", "3.11", 42)


def hello(**changes: object) -> bytes:
    return Conversation(Side.WORKER).pack(Kind.HELLO, body=encode_object({**HELLO._asdict(), **changes}))


@pytest.mark.parametrize(
    ("packets", "versions", "reason"),
    [
        ([hello()], (2, 3), "refused the worker: it speaks protocol 1 to 1, this daemon 2 to 3"),
        ([hello(protocol=[7, 9])], (1, 1), "refused the worker: it speaks protocol 7 to 9, this daemon 1 to 1"),
        ([hello(engine="lava")], (1, 1), "refused the worker: it is the engine 'lava', wanted was 'echo'"),
        ([hello(pid="42")], (1, 1), "broke the protocol: pid is '42'"),
        ([b"hello"], (1, 1), "broke the protocol: a packet of 5 bytes"),
        ([hello(), hello()], (1, 1), "broke the protocol: HELLO from the worker while"),
        (
            [hello(), HEADER.pack(MAGIC, 0, Kind.REFUSE, 0, 16) + b'{"reason":"old"}'],
            (1, 1),
            "refused this daemon: old",
        ),
        ([hello(), HEADER.pack(MAGIC, 1, Kind.DONE, 0, 0)], (1, 1), "broke the protocol: DONE"),
    ],
)
def test_the_daemon_refuses_a_stranger_by_name(packets: list[bytes], versions: tuple[int, int], reason: str) -> None:
    found = fake_worker(packets, versions)
    assert reason in found
    if "refused the worker" in reason:
        assert "REFUSE" not in found
        assert reason.partition(": ")[2].encode() in found.encode(), "it is told why"


def test_descriptors_that_a_worker_sends_are_not_kept() -> None:
    async def main() -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client = WorkerClient(ours, 1.0)
        before = open_descriptors()
        rights = array.array("i", [theirs.fileno()] * 3)
        theirs.sendmsg([hello()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        await client.greet("echo")
        after = open_descriptors()
        client.close(EngineError("closed"))
        theirs.close()
        return after - before

    assert asyncio.run(main()) == 0


# Interpreters


@pytest.mark.parametrize("version", ["3.8", "3.10", "3.12"])
def test_the_core_runs_on_other_interpreters(version: str) -> None:
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-V"], capture_output=True, check=False).returncode != 0:
        optional(f"python{version}", "an interpreter that a worker may have to run on")
    daemon = Daemon(python)
    try:
        memory = daemon.load()
        memory.arrays.of(0, Role.INPUT, 1)["x"][:] = 7
        daemon.send(Kind.INFER, 1, RUN.pack(0, 1))
        assert daemon.receive().kind is Kind.DONE
        assert memory.arrays.of(0, Role.READOUT, 1)["readout"].tolist() == [[7, 7, 7]]
        daemon.send(Kind.BYE)
        assert daemon.end() == (Exit.OK, "")
        memory.close()
    finally:
        daemon.sock.close()
        daemon.process.kill()
        daemon.process.communicate()


def test_a_worker_runs_our_copy_of_edged_and_nothing_else_of_ours(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the working directory was imported')")
    code = (
        BOOT.partition("from edged.engines")[0] + "import edged.engines.wire as w, sys; print(w.__file__, sys.path[0])"
    )
    init = Path(edged.__file__)
    boot = [sys.executable, "-I", "-c", code, str(init), str(init.parent)]
    done = subprocess.run(boot, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == str(init.parent / "engines" / "wire.py")
    assert str(ROOT) not in done.stdout.split()[1]


def test_every_engine_of_ours_has_its_file() -> None:
    for module in ENGINES.values():
        assert (ROOT / Path(*module.split(".")).with_suffix(".py")).is_file()


def test_memory_lives_as_long_as_its_views() -> None:
    memory = SharedMemory(LAYOUT)
    view = memory.arrays.of(0, Role.INPUT, 1)["x"]
    memory.close()
    del memory
    view[:] = 1
    assert view.sum() == 8
    assert isinstance(view.base, mmap.mmap)
