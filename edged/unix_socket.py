"""Unix stream sockets by directory and name, however long the directory's path is (an address holds 108 bytes).

Does not speak: who may connect is said by the socket's mode and its directory, what is said by whoever uses it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


def listen(path: Path, mode: int, backlog: int) -> socket.socket:
    """A fresh socket that listens; one that is left of a killed process is replaced. Raises OSError.

    Call it only where nobody else may listen at this path, as under a lock.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            listener.bind(name)
        path.chmod(mode)
        listener.listen(backlog)
    except BaseException:  # a cancellation too: what was begun is undone, and it goes on
        listener.close()
        raise
    return listener


def connect(client: socket.socket, path: Path) -> None:
    """Connect a Unix socket to the one at ``path``. Raises OSError."""
    with _short(path) as name:
        client.connect(name)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the socket that fits into a socket's address."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
