"""``python -m edged.engines.attendant ENGINE``: the first process in a worker's unit. One connection, one worker.

systemd starts it with a connection of the daemon (Accept=yes). It reads one request, starts the worker with the end of
the wire that came along, and reports its process, its memory and its end. When the daemon is gone, or hangs up to be
rid of a worker that hangs, it kills the worker; systemd then kills whatever else is in the unit's cgroup. The unit says
which engine and which interpreter it may start: the daemon cannot ask for another. Never reads the wire.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edged.engines.hosted import PACKET, Ending, News, Request
from edged.engines.process import WorkerProcess, command

CONNECTION = 3  # SD_LISTEN_FDS_START: the first descriptor that systemd hands over
REQUEST_S = 10.0  # a daemon asks at once; a connection that does not is none
REPORT_S = 2.0  # between two looks at the memory: less than the daemon's own between two looks at it

OK, REFUSED = 0, 71


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one connection to its end. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="edged-worker", description=__doc__.splitlines()[0])
    parser.add_argument("engine", help="the engine, or the table of several: lava stands for lava-sim too")
    parser.add_argument("--python", default="", help="the interpreter that has the engine's package")
    parser.add_argument("--engine-file", type=Path, help="a Python file with a class Engine, instead of one of ours")
    options = parser.parse_args(arguments)
    with socket.socket(fileno=CONNECTION) as connection:
        connection.set_inheritable(False)
        connection.setblocking(False)
        return asyncio.run(attend(connection, options.engine, options.python, options.engine_file))


async def attend(connection: socket.socket, engine: str, python: str, engine_file: Path | None = None) -> int:
    """Start the worker that is asked for, report until it has ended or the daemon is gone, leave nothing behind."""
    try:
        request, wire = await _request(connection)
    except (TimeoutError, ValueError, OSError) as error:
        return _refuse(connection, f"was asked for in a way that nobody understands: {error}")
    try:
        if request.engine.partition("-")[0] != engine:
            return _refuse(connection, f"is not {request.engine}: this unit is for {engine}")
        process = _start(request.engine, python, engine_file, wire)
    except OSError as error:
        return _refuse(connection, f"could not be started: {python or sys.executable}: {error.strerror}")
    finally:
        os.close(wire)
    await _report(connection, process)
    how = Ending(
        how=process.ending(),
        faulted=process.faulted,
        killed_by_others=process.killed_by_others,
        said=process.said,
    )
    _tell(connection, News(ending=how))
    return OK


async def _request(connection: socket.socket) -> tuple[Request, int]:
    """The request and the descriptor beside it. Raises TimeoutError, ValueError (msgspec's included), OSError."""
    async with asyncio.timeout(REQUEST_S):
        await _readable(connection)
    packet, fds, _, _ = socket.recv_fds(connection, PACKET, 1)
    try:
        request = msgspec.json.decode(packet, type=Request)
        if len(fds) != 1:
            raise ValueError("no descriptor came with the request")
    except ValueError:
        for fd in fds:
            os.close(fd)
        raise
    return request, fds[0]


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(connection.fileno(), arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(connection.fileno())


def _start(engine: str, python: str, engine_file: Path | None, wire: int) -> WorkerProcess:
    arguments = [engine, "--fd", str(wire), "--parent", str(os.getpid())]
    if engine_file is not None:
        arguments += ["--engine-file", str(engine_file)]
    return WorkerProcess(command(python, arguments), wire, lambda: None)


async def _report(connection: socket.socket, process: WorkerProcess) -> None:
    """Tell process and memory until the worker has ended; end it when the daemon hangs up."""
    hung_up = asyncio.ensure_future(_readable(connection))  # after its request the daemon sends nothing but its end
    try:
        news = News(pid=process.pid)
        while _tell(connection, news):
            await asyncio.wait([process.exited, hung_up], timeout=REPORT_S, return_when=asyncio.FIRST_COMPLETED)
            if process.exited.done() or hung_up.done():
                break
            news = News(memory_bytes=process.memory_bytes())
    finally:
        hung_up.cancel()
        await process.end()


def _refuse(connection: socket.socket, why: str) -> int:
    _tell(connection, News(ending=Ending(how=why)))
    return REFUSED


def _tell(connection: socket.socket, news: News) -> bool:
    """Whether anybody is there to hear it. A daemon that does not read reports loses them, not its worker."""
    try:
        connection.send(msgspec.json.encode(news))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
