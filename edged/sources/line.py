"""Opens a line that brings bytes: a serial line, a FIFO, or another character device, read only and without waiting."""

from __future__ import annotations

import os
import stat
import termios
import tty
from pathlib import Path

from edged.errors import ConfigError


def open_line(path: Path, baud: int) -> int:
    """The line, open and raw. Raises OSError while it is not there, ConfigError when it is something else."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISCHR(mode) and not stat.S_ISFIFO(mode):
            raise ConfigError(f"{path} is no line and no FIFO", "name a serial line, a FIFO or a device of that kind")
        if os.isatty(fd):
            _set_raw(fd, baud)
    except BaseException:  # a cancellation too: what was begun is undone, and it goes on
        os.close(fd)
        raise
    return fd


def _set_raw(fd: int, baud: int) -> None:
    """No echo, no line editing, no control characters; 8 bits at ``baud``."""
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise ConfigError(f"no serial line has the speed {baud}", "name one of termios(3), such as 115200 or 921600")
    try:
        tty.setraw(fd, termios.TCSANOW)  # not flushed: what has come already is part of the stream
        attributes = termios.tcgetattr(fd)
        attributes[2] |= termios.CLOCAL | termios.CREAD
        attributes[4] = attributes[5] = speed
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except termios.error as error:
        raise OSError(error.args[0], f"the line cannot be set up: {error.args[1]}") from None
