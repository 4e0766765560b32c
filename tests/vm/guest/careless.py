"""The daemon without one protection: its database is not flushed (``synchronous=OFF``). The control of power cuts."""

from __future__ import annotations

import functools
import sqlite3
import sys

from edged.cli import main


class Careless(sqlite3.Connection):
    """A connection that takes no for a yes."""

    def execute(self, sql: str, /, *arguments: object) -> sqlite3.Cursor:
        """Run a statement; FULL becomes OFF."""
        return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), *arguments)  # type: ignore[arg-type]  # the same


if __name__ == "__main__":
    sqlite3.connect = functools.partial(sqlite3.connect, factory=Careless)  # type: ignore[assignment]  # one of its forms
    sys.exit(main(sys.argv[1:]))
