"""The cache of derived plans: one directory for each bundle digest and plan version, made in a subprocess.

The daemon never imports onnx: ``ensure_plans`` starts ``python -m edged.bundle.plans BUNDLE DEST``, which checks the
graph, derives the plans and renames the directory into place. A cached file whose sha256 does not match is rebuilt.
Plans are never shipped and never trusted beyond this cache.

A directory holds ``step.onnx`` (the model with its weights in float32), ``window-unrolled.onnx``, ``window-scan.onnx``
and ``plans.json`` with the sha256 of each. Engines whose worker has no onnx find there, if they are named, what they
read: for TensorRT ``f32-step.onnx`` and ``f32-window.onnx`` in standard ops alone, the same for ``fp16`` and ``int8``,
or in ``plans.json`` why the model has no such variant: that is the engine's to say, and nothing against the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from edged.bundle.files import appearing, write_durably
from edged.bundle.loaded import Bundle, open_bundle
from edged.errors import BundleError, EdgedError

PLAN_VERSION = 1  # raised whenever the same bundle would give other plans
STEP = "step.onnx"
WINDOWS = {"unrolled": "window-unrolled.onnx", "scan": "window-scan.onnx"}
INDEX = "plans.json"
STANDARD = {  # the numbers of an engine that reads standard ops alone; any other engine reads the plans of everybody
    "tensorrt": "f32",
    "tensorrt-rtx": "f32",
    "tensorrt-fp16": "fp16",
    "tensorrt-int8": "int8",
}
BUILD_TIMEOUT_S = 300.0  # the largest model allowed takes about a minute on a slow ARM core
_REFUSED = 3  # exit code of the subprocess: the graph is at fault, its reason is on stdout
_FAILED = 4  # something else is (a damaged file, a full disk), its reason is on stdout


class GraphRefused(BundleError):
    """The graph itself cannot be accepted: trying again does not help."""


class PlanIndex(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Contents of ``plans.json``."""

    digest: str
    plan_version: int
    files: dict[str, str]  # name → sha256
    refused: dict[str, str] = {}  # variant → why there is none


async def ensure_plans(bundle: Bundle, cache_dir: Path, engines: Iterable[str] = ()) -> Path:
    """The directory with the plans of a bundle for some engines, built first where it is missing or damaged.

    Safe to call concurrently. Raises BundleError with the reason when the graph is not acceptable, or when the plans
    cannot be built.
    """
    variants = sorted({STANDARD[engine] for engine in engines if engine in STANDARD})
    dest = cache_dir / "-".join([bundle.digest, f"p{PLAN_VERSION}", *variants])
    if await asyncio.to_thread(_intact, dest, bundle.digest, variants):
        return dest
    await _build(bundle.path, dest, variants)
    if not await asyncio.to_thread(_intact, dest, bundle.digest, variants):
        raise BundleError(f"{dest} is damaged right after it was built", "check the disk")
    return dest


async def _build(bundle: Path, dest: Path, variants: list[str]) -> None:
    command = [sys.executable, "-m", "edged.bundle.plans", str(bundle), str(dest), *variants]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(BUILD_TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError:
        raise BundleError(f"{bundle}: its plans took more than {BUILD_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode in (_REFUSED, _FAILED):
        reason = msgspec.json.decode(out, type=dict[str, str])
        kind = GraphRefused if process.returncode == _REFUSED else BundleError
        raise kind(reason["message"], reason["hint"])
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines() or ["no output"]
        raise BundleError(f"{bundle}: its plans cannot be built: {lines[-1]}", f"exit status {process.returncode}")


def _intact(folder: Path, digest: str, variants: Iterable[str] = ()) -> bool:
    """Whether a cached directory is whole: every plan there with the sha256 that was recorded."""
    try:
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=PlanIndex)
        if (
            index.digest != digest
            or index.plan_version != PLAN_VERSION
            or set(index.files) != _names(variants, index.refused)
        ):
            return False
        return all(_sha256((folder / name).read_bytes()) == sha for name, sha in index.files.items())
    except (OSError, msgspec.MsgspecError):
        return False


def _names(variants: Iterable[str], refused: Mapping[str, str]) -> set[str]:
    made = [variant for variant in variants if variant not in refused]
    return {STEP, *WINDOWS.values(), *(f"{variant}-{plan}.onnx" for variant in made for plan in ("step", "window"))}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def derive(bundle: Bundle, variants: Sequence[str] = ()) -> tuple[dict[str, bytes], dict[str, str]]:
    """The plans of a bundle by file name, after its graph was checked, and why there is none of some variants.

    Imports onnx. Raises BundleError.
    """
    from edged.bundle.graph.checks import check_step_graph
    from edged.bundle.graph.plans import window_plan
    from edged.bundle.graph.variants import NoVariant, standard_plans

    try:
        model = check_step_graph(bundle.read(bundle.manifest.variant.model), bundle.spec)
        plans = {STEP: model.SerializeToString(deterministic=True)}
        plans[WINDOWS["unrolled"]] = window_plan(model, bundle.spec, "unrolled").SerializeToString(deterministic=True)
        plans[WINDOWS["scan"]] = window_plan(model, bundle.spec, "scan").SerializeToString(deterministic=True)
    except BundleError as error:
        raise GraphRefused(error.message, error.hint) from None
    refused = {}
    bare = {"step": model, "window": window_plan(model, bundle.spec, "unrolled", raw=True)} if variants else {}
    for variant in variants:
        try:
            made = standard_plans(variant, bare)
        except NoVariant as error:
            refused[variant] = str(error)
        else:
            plans |= {
                f"{variant}-{name}.onnx": plan.SerializeToString(deterministic=True) for name, plan in made.items()
            }
    return plans, refused


def write_plans(bundle: Bundle, dest: Path, variants: Sequence[str] = ()) -> None:
    """Derive and put in place. Raises BundleError; a directory that is in the way and intact is kept."""
    plans, refused = derive(bundle, variants)
    sums = {name: _sha256(data) for name, data in plans.items()}
    index = PlanIndex(digest=bundle.digest, plan_version=PLAN_VERSION, files=sums, refused=refused)
    _clear(dest, bundle.digest, variants)
    try:
        with appearing(dest) as temporary:
            for name, data in plans.items():
                write_durably(temporary / name, data)
            write_durably(temporary / INDEX, msgspec.json.encode(index))
    except BundleError:
        if not _intact(dest, bundle.digest, variants):  # else somebody else was faster, with the same bytes
            raise


def _clear(dest: Path, digest: str, variants: Iterable[str]) -> None:
    """Take a damaged directory out of the way, in one rename."""
    if not os.path.lexists(dest) or _intact(dest, digest, variants):
        return
    grave = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    with contextlib.suppress(OSError):  # somebody else cleared it first
        dest.rename(grave / "damaged")
    shutil.rmtree(grave, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Entry of the subprocess: BUNDLE DEST [VARIANT …]. Prints its reason as JSON when the bundle is refused."""
    try:
        write_plans(open_bundle(Path(arguments[0])), Path(arguments[1]), arguments[2:])
    except EdgedError as error:
        sys.stdout.write(msgspec.json.encode({"message": error.message, "hint": error.hint}).decode())
        return _REFUSED if isinstance(error, GraphRefused) else _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
