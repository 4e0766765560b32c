"""A virtual machine: started on a disk, talked to through its agent, and cut off or shut down.

QEMU with KVM where that really runs (it can be there and not work: ``accelerator`` boots to see), else emulated. The
guest has no network. What it may read of the host is one directory, ``share``, at /mnt/host. The paths of Unix sockets
must be short, so they live in a temporary directory of their own.
"""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from tests.vm.image import Image
from tests.vm.qmp import Qmp

AGENT = Path(__file__).parent / "guest" / "agent.py"
PYTHON = ("env", "PYTHONPATH=/srv/tree", "/opt/edged/bin/python", "-m")  # runs a module of the tree in the guest
MEMORY_MB = 1024
PATIENCE_S = 300.0  # with a program in a guest that is emulated on busy cores: there a Python starts in half a minute
UP_S = 600.0  # measured, emulated: 49 s beside four busy processes, 126 s beside fourteen
# no_timer_check: on busy cores an emulated timer is late, which the kernel would take for a broken board
APPEND = (
    "root=/dev/vda rw console=ttyS0 loglevel=4 panic=-1 mitigations=off audit=0 systemd.show_status=0 no_timer_check"
)
PROBE_S = 5.0  # under KVM the firmware is at its end after half a second


class GuestFailed(AssertionError):
    """A program in the guest did not end as it should: says how, and what it said."""


@dataclass(frozen=True)
class Done:
    """A program that has ended."""

    code: int
    out: str
    err: str


class Job:
    """A program that runs in the guest. ``lines`` yields what it says while it says it."""

    def __init__(self, guest: Guest, number: int, argv: Sequence[str]) -> None:
        self.argv = argv
        self._guest = guest
        self._number = number
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._err: list[str] = []
        self._code: int | None = None

    def lines(self, timeout_s: float) -> Iterator[str]:
        """Each line of its stdout until it ends or the machine does. Raises GuestFailed when the time is over."""
        yield from self.heard(timeout_s)
        if self._code is None:
            raise GuestFailed(f"{self._name()}: no end after {timeout_s} s{self._said()}")

    def heard(self, for_s: float) -> Iterator[str]:
        """Each line of its stdout that it says from now on, for so long, or until it or the machine ends."""
        deadline = time.monotonic() + for_s
        while self._code is None:
            try:
                message = self._messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            if "out" in message:
                yield message["out"]
            self._err += [message["err"]] if "err" in message else []
            self._code = message.get("exit")

    def wait(self, timeout_s: float) -> Done:
        """Wait for its end."""
        out = "".join(f"{line}\n" for line in self.lines(timeout_s))
        assert self._code is not None
        return Done(self._code, out, "".join(f"{line}\n" for line in self._err))

    def success(self, timeout_s: float) -> str:
        """Wait for its end, and return its stdout. Raises GuestFailed unless it ended with 0."""
        done = self.wait(timeout_s)
        if done.code:
            raise GuestFailed(f"{self._name()}: exit code {done.code}\n{done.out[-4000:]}{self._said()}")
        return done.out

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it started."""
        self._guest.send({"id": self._number, "signal": number})

    def hear(self, message: dict[str, Any]) -> None:
        """What the agent tells of it."""
        self._messages.put(message)

    def _name(self) -> str:
        return " ".join(self.argv)[:200]

    def _said(self) -> str:
        return "".join(f"\n{line}" for line in self._err)[-4000:]


class Guest:
    """A running machine. As a context manager it ends with its block, as if the power were cut.

    ``disk`` is written to; ``overlay`` makes one that starts as another. ``others`` are its /dev/vdb, /dev/vdc and so
    on. ``share`` is readable at /mnt/host.
    """

    def __init__(
        self, image: Image, disk: Path, share: Path, *, log: Path, processors: int = 2, others: Sequence[Path] = ()
    ) -> None:
        started = time.monotonic()
        shutil.copyfile(AGENT, share / AGENT.name)
        self.share = share
        self.log = log
        self._jobs: dict[int, Job] = {}
        self._up: queue.Queue[float] = queue.Queue()
        self._over = threading.Event()
        with contextlib.ExitStack() as stack:
            sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-")))
            self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(str(sockets / "agent"))
            self._listener.listen(1)
            command = _command(image, disk, share, log, sockets, processors) + _further(others)
            with log.open("ab") as said:
                self._qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said)
            stack.callback(self._kill)
            self.qmp = Qmp(sockets / "qmp")
            stack.callback(self.qmp.close)
            self._port, _ = self._listener.accept()
            stack.callback(self._port.close)
            self._reader = threading.Thread(target=self._read, name="agent", daemon=True)
            self._reader.start()
            stack.callback(self._drain)
            self.kernel_s = self._wait_up()
            self.boot_s = time.monotonic() - started
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()

    # Programs

    def start(self, *argv: str, given: str = "") -> Job:
        """Start a program in the guest, as root. ``given`` is its stdin."""
        number = len(self._jobs) + 1
        job = self._jobs[number] = Job(self, number, argv)
        self.send({"id": number, "argv": argv, "input": given})
        return job

    def run(self, *argv: str, given: str = "", timeout_s: float = PATIENCE_S) -> str:
        """Run a program to its end and return its stdout. Raises GuestFailed unless it ended with 0."""
        return self.start(*argv, given=given).success(timeout_s)

    def shell(self, script: str, timeout_s: float = PATIENCE_S) -> str:
        """Run lines of shell, which end at the first that fails."""
        return self.run("/bin/sh", "-eu", given=script, timeout_s=timeout_s)

    def python(self, module: str, *arguments: str, given: str = "", timeout_s: float = PATIENCE_S) -> str:
        """Run a module of the tree with edged's environment, and return its stdout."""
        return self.run(*PYTHON, module, *arguments, given=given, timeout_s=timeout_s)

    def copy(self, source: Path, target: str) -> None:
        """Copy a file or directory of the host into the guest; ``target`` is the new path."""
        with tempfile.TemporaryDirectory(dir=self.share) as folder:
            part = Path(folder, "part")
            if source.is_dir():
                shutil.copytree(source, part)
            else:
                shutil.copy(source, part)
            Path(folder).chmod(0o755)
            self.run("cp", "-a", "--no-preserve=ownership", f"/mnt/host/{Path(folder).name}/part", target)

    def send(self, message: dict[str, Any]) -> None:
        """Tell the agent."""
        self._port.sendall(json.dumps(message).encode() + b"\n")

    # Power

    def cut_power(self) -> None:
        """End the machine between two instructions: what it had not flushed to its disk is gone."""
        self._stack.close()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The machine stands still between two instructions: a copy of its disk is now what a power cut would leave.

        As with ``cut_power`` nothing is flushed before (QEMU's own pause would do that), neither by it nor by QEMU.
        """
        self._qemu.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._qemu.send_signal(signal.SIGCONT)

    def shut_down(self, timeout_s: float = PATIENCE_S) -> None:
        """Ask systemd to stop everything, and wait for that."""
        self.start("systemctl", "--no-block", "poweroff")
        self._qemu.wait(timeout_s)
        self._stack.close()

    # Private

    def _wait_up(self) -> float:
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline and not self._over.is_set():
            with contextlib.suppress(queue.Empty):
                return self._up.get(timeout=0.2)
        raise GuestFailed(f"the machine did not come up:\n{self.log.read_text(errors='replace')[-4000:]}")

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._port.makefile("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # cut off
                message = json.loads(line)
                if "up" in message:
                    self._up.put(message["up"])
                else:
                    self._jobs[message["id"]].hear(message)
        self._over.set()
        for job in list(self._jobs.values()):
            job.hear({"err": "the machine ended", "exit": -1})

    def _kill(self) -> None:
        self._qemu.kill()
        self._qemu.wait()

    def _drain(self) -> None:
        self._kill()
        self._reader.join()  # what it had told is read, although it is gone


def overlay(base: Path, disk: Path) -> Path:
    """A disk that starts as another one, which must not change from now on, and takes what is written."""
    kind = "raw" if base.suffix == ".raw" else "qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", kind, str(disk)], check=True)
    return disk


def _command(image: Image, disk: Path, share: Path, log: Path, sockets: Path, processors: int) -> list[str]:
    kind = accelerator()
    # Without a host cache a flush of the guest is a flush, and what it did not flush is in nobody's memory but its own.
    drive = f"if=none,id=root,file={disk},format=qcow2,cache=none"
    return [
        *("setpriv", "--pdeathsig", "KILL"),  # no machine outlives whoever started it
        *("qemu-system-x86_64", "-accel", kind, "-cpu", "host" if kind == "kvm" else "max", "-smp", str(processors)),
        *("-m", str(MEMORY_MB), "-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", APPEND),
        *("-drive", drive, "-device", "virtio-blk-pci,drive=root", "-device", "virtio-rng-pci"),
        *("-virtfs", f"local,path={share},mount_tag=host,security_model=none,readonly=on"),
        *(
            "-device",
            "qemu-xhci,id=xhci",
            "-chardev",
            f"file,id=console,path={log},append=on",
            "-serial",
            "chardev:console",
        ),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={sockets / 'agent'}"),
        *("-device", "virtserialport,chardev=agent,name=agent", "-qmp", f"unix:{sockets / 'qmp'},server=on,wait=off"),
    ]


def _further(disks: Sequence[Path]) -> list[str]:
    options = []
    for number, disk in enumerate(disks):
        options += ["-drive", f"if=none,id=disk{number},file={disk},format=qcow2"]
        options += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return options


@cache
def accelerator() -> str:
    """``kvm`` where a processor really runs under it, else the emulator.

    KVM can be there and fail at the first register, or stand still: so the firmware has to say something.
    """
    with tempfile.TemporaryDirectory(prefix="vm-") as folder:
        said = Path(folder, "said")
        command = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-machine", "q35", "-nodefaults",
                   "-display", "none", "-debugcon", f"file:{said}", "-global", "isa-debugcon.iobase=0x402"]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as probe:
            deadline = time.monotonic() + PROBE_S
            while time.monotonic() < deadline and probe.poll() is None:
                time.sleep(0.05)
                if said.exists() and b"No bootable device" in said.read_bytes():
                    break
            probe.kill()
        return "kvm" if said.exists() and b"No bootable device" in said.read_bytes() else "tcg,thread=multi"
