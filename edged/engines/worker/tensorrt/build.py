"""Builds a plan in a process of its own, which can be ended at any moment.

TensorRT itself cannot: a build that was told to stop went on for three minutes, and before 10 it cannot be told. A
process of its own also takes the builder's memory (hundreds of megabytes) away with it, and a crash costs no more than
the build. The worker watches the time and tells how far it is. The process dies with the worker. The plan comes back in
memory: a build that ends early leaves nothing on the disk.

``main`` is what runs there; it says on its standard output, in lines of JSON, what it does and how it ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.engines.worker.engine import ModelRefused
from edged.engines.worker.tensorrt.api import Api, Built, Options, PlanFailed

TELL_S = 1.0  # between two words of progress
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# As the worker itself was started: this very copy of edged, and nothing else of anybody's path.
BOOT = """\
import sys, importlib.util as u
s = u.spec_from_file_location("edged", sys.argv[1], submodule_search_locations=[sys.argv[2]])
sys.modules["edged"] = m = u.module_from_spec(s)
s.loader.exec_module(m)
from edged.engines.worker.tensorrt.build import main
sys.exit(main(sys.argv[3:]))
"""


class GivenUp(Exception):
    """A build was ended because its time was over."""


def build(
    package: str, graph: Path, options: Options, what: str, until_s: float, progress: Callable[[str], None]
) -> Built:
    """A plan of the file ``graph``, by ``until_s`` (monotonic). Raises ModelRefused, PlanFailed, GivenUp, OSError."""
    began_s = time.monotonic()
    plan, timings = (os.memfd_create(name) for name in ("plan", "timings"))
    try:
        _write(timings, options.timings)
        given = [package, str(graph), str(options.largest), str(int(options.int8)), str(plan), str(timings)]
        init = Path(__file__).parents[3] / "__init__.py"  # of edged, which a worker does not import whole
        command = [sys.executable, "-I", "-c", BOOT, str(init), str(init.parent), str(os.getpid()), *given]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, pass_fds=(plan, timings)) as child:
            try:
                said = _watch(child, what, began_s, until_s, progress)
            finally:
                child.kill()
        if "built" not in said:
            kind = ModelRefused if said.get("refused") else PlanFailed
            raise kind(said.get("failed") or f"the build ended with code {child.returncode}")
        return Built(_read(plan), _read(timings))
    finally:
        os.close(plan)
        os.close(timings)


def _watch(
    child: subprocess.Popen[bytes], what: str, began_s: float, until_s: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The last word of a build. Raises GivenUp."""
    assert child.stdout is not None
    said: dict[str, Any] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        rest = b""
        while True:
            now_s = time.monotonic()
            if now_s >= until_s:
                raise GivenUp(f"its build took more than {until_s - began_s:.0f} s")
            phase = f": {said['phase']}" if said.get("phase") else ""
            progress(f"building the {what} plan, {now_s - began_s:.0f} s of at most {until_s - began_s:.0f} s{phase}")
            if not selector.select(min(TELL_S, until_s - now_s)):
                continue
            chunk = os.read(child.stdout.fileno(), 65536)
            if not chunk:
                child.wait()
                return said
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                said = _word(line) or said


def _word(line: bytes) -> dict[str, Any]:
    """A line of ours; whatever else TensorRT prints is for the log."""
    try:
        word = json.loads(line)
    except ValueError:
        word = None
    if isinstance(word, dict):
        return word
    print(line.decode("utf-8", "replace"), flush=True)
    return {}


def main(arguments: list[str]) -> int:
    """Entry of the process: PARENT PACKAGE GRAPH LARGEST INT8 PLAN-FD TIMINGS-FD."""
    parent, package, graph, largest, int8, plan, timings = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        return 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        options = Options(int(largest), int8 == "1", _read(int(timings)))
        built = Api(package).build(Path(graph).read_bytes(), options, lambda phase: _say({"phase": phase}))
        _write(int(plan), built.plan)
        _write(int(timings), built.timings)
        _say({"built": True})
    except Exception as error:  # the process's edge: whatever an SDK raises becomes one message
        traceback.print_exc()
        _say({"failed": str(error) or type(error).__name__, "refused": isinstance(error, ModelRefused)})
    return 0


def _say(word: dict[str, Any]) -> None:
    print(json.dumps(word), flush=True)


def _write(descriptor: int, data: bytes) -> None:
    os.ftruncate(descriptor, 0)
    left = memoryview(data)
    place = 0
    while left:
        count = os.pwrite(descriptor, left, place)
        left, place = left[count:], place + count


def _read(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts, place = [], 0
    while place < size:
        parts.append(os.pread(descriptor, size - place, place))
        place += len(parts[-1])
    return b"".join(parts)
