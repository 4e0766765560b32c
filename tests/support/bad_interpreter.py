"""An interpreter that a test can spoil: a script in front of the real one, which reads what to do from a file.

``python ARGUMENTS`` starts the real interpreter with the same arguments, unless the file beside it names an act.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path

ACTS = ("exit", "hang", "garbage", "protocol", "hog", "missing")
HOG = 3 << 30  # bytes: over every worker's limit
SCRIPT = """\
#!/bin/sh
act=$(cat "{act}" 2>/dev/null)
[ -z "$act" ] || exec "{here}" "{me}" "$act" "$@"
exec "{real}" "$@"
"""


class Interpreter:
    """A script at ``path`` in front of ``real``."""

    def __init__(self, folder: Path, real: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "python"
        self._away = folder / "python.away"
        self._act = folder / "act"
        self.path.write_text(SCRIPT.format(act=self._act, here=sys.executable, me=__file__, real=real))
        self.path.chmod(0o755)

    def spoil(self, act: str) -> None:
        """Workers that are started from now on do this instead."""
        self.heal()
        if act == "missing":
            self.path.rename(self._away)
        else:
            self._act.write_text(act)

    def heal(self) -> None:
        """Be a good interpreter again."""
        self._act.unlink(missing_ok=True)
        if self._away.exists():
            self._away.rename(self.path)


def main(act: str, arguments: list[str]) -> None:
    """Be a bad worker at the socket of ``--fd``."""
    fd = int(re.search(r"--fd (\d+)", " ".join(arguments)).group(1))  # type: ignore[union-attr]  # it is always there
    if act == "exit":
        os._exit(9)
    if act == "hog":
        held = bytearray(os.urandom(1 << 20) * (HOG >> 20))
        time.sleep(600)
        print(len(held))
    if act == "garbage":
        os.write(fd, b"\0" * 40)
    if act == "protocol":
        _speak_another_protocol(fd)
    time.sleep(600)


def _speak_another_protocol(fd: int) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from edged.engines.worker.serve import Server

    class Stranger:
        version = "9"

    sys.exit(Server(socket.socket(fileno=fd), versions=(9, 9)).serve("lava", Stranger()))  # type: ignore[arg-type]  # it gets no further


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
