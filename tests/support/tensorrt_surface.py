"""``python -m tests.support.tensorrt_surface PACKAGE CALLS``: would the real bindings take every call that was noted?

CALLS are the uses that ``fake_gpu/tensorrt.py`` wrote down while the worker ran. Each is held to the bindings: the
class and the member exist, and one of the signatures in a function's own documentation (pybind11 writes them there)
takes so many arguments of such types. Prints a line for each that they would not take, and how many were held to them.
Runs where the bindings are; no library of TensorRT, no GPU, and nothing of the project is needed.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

# What an argument of ours may be, by the type that a signature names (its last part). Buffers take bytes.
TAKES = {
    "int": {"int"},
    "SupportsInt": {"int"},
    "SupportsIndex": {"int"},
    "str": {"str"},
    "bool": {"bool"},
    "buffer": {"bytes"},
    "Buffer": {"bytes"},
    "Dims": {"tuple"},
    "IHostMemory": {"bytes"},
    "ILogger": {"Logger", "ILogger"},
    "IProgressMonitor": {"Monitor"},
}
SUBCLASSED = {"Logger": ("ILogger", ("log",)),
              "Monitor": ("IProgressMonitor", ("phase_start", "step_complete", "phase_finish"))}  # fmt: skip


def main() -> int:
    """One line a problem, then the count. Exit code 1 where there was one."""
    warnings.simplefilter("ignore")
    trt = importlib.import_module(sys.argv[1])
    uses = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
    problems = [problem for use in uses for problem in [_problem(trt, *use)] if problem]
    for name, (base, methods) in SUBCLASSED.items():
        if any(name in use[3] for use in uses):
            problems += [f"{base}.{m} is not there to be overridden" for m in methods if not _member(trt, base, m)]
    print("\n".join([*problems, f"{trt.__version__}: {len(uses)} uses, {len(problems)} of them not taken"]))
    return 1 if problems else 0


def _problem(trt: Any, owner: str, name: str, kind: str, arguments: list[str]) -> str:
    use = f"{owner}.{name}"
    if kind == "member":
        members = getattr(_class(trt, owner), "__members__", {})
        return "" if name in members else f"{use} is no member"
    member = _member(trt, owner, name)
    if member is None:
        return f"{use} does not exist"
    if kind == "get":
        return "" if isinstance(member, property) else f"{use} is no property"
    if kind == "set":
        return "" if isinstance(member, property) and member.fset else f"{use} cannot be set"
    signatures = re.findall(rf"^\s*(?:\d+\. )?{name}\((.*?)\) ->", member.__doc__ or "", re.MULTILINE)
    if any(_takes(signature, arguments) for signature in signatures):
        return ""
    return f"{use}({', '.join(arguments)}) is none of {signatures or 'its documented signatures'}"


def _class(trt: Any, owner: str) -> Any:
    found = trt
    for part in owner.split("."):
        found = getattr(found, {"IParserError": "ParserError"}.get(part, part), None) or getattr(found, part, None)
    return found


def _member(trt: Any, owner: str, name: str) -> Any:
    return getattr(_class(trt, owner), name, None)


def _takes(signature: str, arguments: list[str]) -> bool:
    parameters = re.findall(r"(\w+): ([^,=]+?)( = [^,]+)?(?:, |$)", signature)
    parameters = parameters[1:] if parameters and parameters[0][0] == "self" else parameters
    if len(arguments) > len(parameters) or any(not default for *_, default in parameters[len(arguments) :]):
        return False
    pairs = zip(arguments, parameters)  # noqa: B905  # Python 3.8; the lengths were compared
    return all(_fits(argument, wanted) for argument, (_, wanted, _) in pairs)


def _fits(argument: str, wanted: str) -> bool:
    kind = re.split(r"[.:]", wanted.strip())[-1]
    return argument.split(".")[0] in TAKES.get(kind, {kind})


if __name__ == "__main__":
    sys.exit(main())
