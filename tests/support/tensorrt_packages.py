"""NVIDIA's packages in tests: the bindings of four versions without their libraries, and TensorRT for RTX whole.

They are installed from PyPI once, into a folder of their own beside the environments (100 MB, of which TensorRT for
RTX is 96; ``EDGED_TENSORRT`` names another place), never into an environment of the project. Bindings are a megabyte of
C++ that imports three or four libraries: here they get some in which every function answers NULL, so nothing can run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.parts import missing, program, require
from tests.support.tree import ROOT

PLACE = Path(os.environ.get("EDGED_TENSORRT", ROOT / ".venv-tensorrt"))
RTX = ("tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt-rtx-cu13-libs==1.7.1.116")
RTX_PACKAGE = "tensorrt_rtx_bindings"


@dataclass(frozen=True)
class Bindings:
    """One version's bindings on PyPI. ``package`` is what Python imports."""

    version: str
    requirement: str
    package: str = "tensorrt_bindings"
    runs_only: bool = False


BINDINGS = (
    Bindings("8.6.1", "tensorrt-bindings==8.6.1"),
    Bindings("10.3.0", "tensorrt-cu12-bindings==10.3.0"),
    Bindings("10.16.1.11", "tensorrt-cu12-bindings==10.16.1.11"),
    Bindings("11.4.0.106", "tensorrt-cu13-bindings==11.4.0.106"),
    Bindings("11.4.0.106-lean", "tensorrt-lean-cu13-bindings==11.4.0.106", "tensorrt_lean_bindings", runs_only=True),
)


def installed(name: str, requirements: tuple[str, ...]) -> Path:
    """A folder with packages, downloaded first where they are not there. CI fails where they cannot be had."""
    require("x86-64 Linux")
    folder = PLACE / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        venv = PLACE / "pip"
        if not (venv / "bin" / "pip").exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        command = [str(venv / "bin" / "pip"), "install", "--quiet", "--no-deps", "--target", str(making), *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(making, ignore_errors=True)
            last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
            missing(" and ".join(requirements), f"pip cannot install them: {last}")
        making.rename(folder)
    return folder


def interpreter(packages: Path, folder: Path) -> str:
    """An interpreter that finds some packages and ours, by no variable: builds run in isolated mode, as workers do."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n{Path(np.__file__).parents[1]}\n{ROOT}\n")
    return str(folder / "bin" / "python")


def empty_libraries(bindings: Path) -> Path:
    """Libraries with every function that the bindings import, each of which answers NULL. Needs binutils and gcc."""
    folder = bindings / "libraries"
    compiler, reader, names = program("cc"), program("readelf"), program("nm")
    if compiler is None or reader is None or names is None:
        missing("gcc and binutils", "they make empty libraries for the bindings")
    if not folder.exists():
        (module,) = (path for path in bindings.glob("tensorrt*/*.so"))
        said = _said(str(reader), "-d", str(module))
        wanted = re.findall(r"NEEDED.*\[(libnv[^\]]*)\]", said)
        listed = _said(str(names), "-D", "--undefined-only", str(module)).split()
        functions = [name for name in listed if re.search(r"^(create|get|init)\w+|nv(caffe|uff)parser", name)]
        code = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions if "@" not in name)
        folder.mkdir()
        for library in wanted:
            command = [str(compiler), "-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library)]
            subprocess.run([*command, "-x", "c", "-"], input=code, text=True, check=True)
    return folder


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
