"""``python -m edged.engines.worker ENGINE``: one engine in its own process, at the other end of a socket.

``--fd N`` serves an inherited socket, connected or listening; ``--socket PATH`` listens there; one daemon is served,
then the process ends. ``--engine-file FILE`` takes the class ``Engine`` of that file instead of an engine of ours.
Exit codes: ``edged.engines.wire.Exit``.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path

from edged.engines.wire import Exit
from edged.engines.worker.engine import Engine
from edged.engines.worker.serve import Server

ENGINES = {  # each module has a class ``Engine``
    "onnxruntime": "edged.engines.worker.onnxruntime",
    "tensorrt": "edged.engines.worker.tensorrt.f32",
    "tensorrt-fp16": "edged.engines.worker.tensorrt.fp16",
    "tensorrt-int8": "edged.engines.worker.tensorrt.int8",
    "tensorrt-rtx": "edged.engines.worker.tensorrt.rtx",
    "lava": "edged.engines.worker.lava.cpu",
    "lava-fixed": "edged.engines.worker.lava.cpu_fixed",
    "lava-sim": "edged.engines.worker.lava.sim",
    "lava-loihi2": "edged.engines.worker.lava.loihi2",
}
PR_SET_PDEATHSIG = 1  # linux/prctl.h
OOM_SCORE = "500"  # when memory runs out the kernel is to take a worker, never the daemon


def main(arguments: list[str] | None = None) -> int:
    """Run a worker to its end. Returns its exit code."""
    options = _options(arguments)
    if options.parent and not _follow(options.parent):
        return Exit.ORPHANED
    _stand_aside()
    try:
        engine = _engine(options.engine, options.engine_file)
    except Exception:  # the worker's edge: an SDK can fail to import in any way
        traceback.print_exc()
        return Exit.NO_ENGINE
    try:
        with _connection(options) as sock:
            return Server(sock).serve(options.engine, engine)
    except Exception:  # the worker's edge: the daemon reads the traceback from stderr
        traceback.print_exc()
        return Exit.FAILED


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m edged.engines.worker", description=__doc__.splitlines()[0])
    parser.add_argument("engine", help=f"one of {', '.join(ENGINES)}; any name with --engine-file")
    ends = parser.add_mutually_exclusive_group(required=True)
    ends.add_argument("--fd", type=int, help="an inherited SOCK_SEQPACKET socket")
    ends.add_argument("--socket", type=Path, help="listen at this path")
    parser.add_argument("--parent", type=int, help="end as soon as this process, the parent, is gone")
    parser.add_argument("--engine-file", type=Path, help="a Python file with a class Engine")
    options = parser.parse_args(arguments)
    if options.engine_file is None and options.engine not in ENGINES:
        parser.error(f"no engine is called {options.engine!r}; there are {', '.join(ENGINES)}")
    return options


def _follow(parent: int) -> bool:
    """Be killed when the parent dies, even inside a call. False if it is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent


def _stand_aside() -> None:
    """Neither fill the disk with core dumps nor take the daemon's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    except OSError as error:
        print(f"cannot raise the OOM score: {error}", file=sys.stderr)


def _engine(name: str, file: Path | None) -> Engine:
    if file is None:
        module = importlib.import_module(ENGINES[name])
    else:
        spec = importlib.util.spec_from_file_location("edged_engine_file", str(file))
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    engine: Engine = module.Engine()
    return engine


def _connection(options: argparse.Namespace) -> socket.socket:
    if options.fd is not None:
        sock = socket.socket(fileno=options.fd)
        sock.set_inheritable(False)  # a child of the SDK must not hold the connection open
        sock.setblocking(True)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.bind(str(options.socket))
        sock.listen(1)
        listening = True
    if not listening:
        return sock
    with sock:
        connection, _ = sock.accept()
    return connection


if __name__ == "__main__":
    sys.exit(main())
