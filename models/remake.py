"""The command line of scripts that make a bundled model anew: into a directory, or in place of the committed one."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from edged.bundle.loaded import Bundle, open_bundle


def remake(module: str, make: Callable[[Path], Bundle], committed: Path) -> None:
    """Make the bundle where the command line says. The committed one is replaced only by one that is whole."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Make the bundle anew.")
    parser.add_argument("directory", nargs="?", type=Path, help="where to, instead of the committed bundle's place")
    directory = parser.parse_args().directory
    if directory is not None:
        bundle = make(directory)
    else:
        fresh = committed.with_name("bundle.new")
        shutil.rmtree(fresh, ignore_errors=True)
        make(fresh)
        shutil.rmtree(committed, ignore_errors=True)
        fresh.rename(committed)
        bundle = open_bundle(committed)
    print(f"{bundle.name} {bundle.version}, digest {bundle.digest}")
