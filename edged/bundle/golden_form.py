"""The form of golden data: which arrays a bundle must have, of which shapes, and which kinds of evidence it holds.

Pure NumPy. What the numbers mean is the business of ``selftest``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.bundle.arrays import decode_npz
from edged.bundle.loaded import Bundle
from edged.errors import BundleError

Floats = NDArray[Any]

FORMAT = 1


def load_golden(bundle: Bundle) -> dict[str, Floats]:
    """The golden data of a bundle, complete and of the shapes that the manifest implies. Raises BundleError."""
    golden = decode_npz(bundle.read(bundle.manifest.variant.golden))
    if int(golden.get("format", np.zeros(())).max(initial=0)) != FORMAT:
        raise BundleError(f"{bundle.path}: the golden data has no format {FORMAT}", "make the bundle again")
    _check_shapes(bundle, golden, _expected_shapes(bundle, golden))
    return golden


def _check_shapes(bundle: Bundle, golden: Mapping[str, Floats], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        value = golden.get(name)
        if value is None or not _fits(value.shape, shape):
            found = "missing" if value is None else f"of shape {value.shape}"
            raise BundleError(f"{bundle.path}: golden array {name!r} is {found}", f"expected {shape} (-1: any)")
        if not np.isfinite(value).all():
            raise BundleError(f"{bundle.path}: golden array {name!r} holds NaN or infinity")


def has_integers(bundle: Bundle, golden: Mapping[str, Floats]) -> bool:
    """Whether an engine in integers has something to prove itself with. Raises BundleError where that is unusable."""
    if int(golden.get("loihi.format", np.zeros(())).max(initial=0)) != FORMAT:
        return False
    rows, free = golden.get("loihi.step.rows", np.zeros(0)), len(golden["free.input"])
    shapes: dict[str, tuple[int, ...]] = {
        "loihi.step.rows": (max(len(rows) if rows.ndim else 0, 1),),
        "loihi.step.output": (len(rows), bundle.classes),
        "loihi.step.output_bound": (),
        "loihi.free.readout": (free, bundle.classes),
        "loihi.free.bound": (),
    }
    for k, state in enumerate(bundle.states):
        shapes |= {f"loihi.step.next.{k}": (len(rows), *state.shape), f"loihi.bound.{k}": ()}
        place = golden.get(f"loihi.tie.{k}.place")
        if place is not None:
            ties = place.size
            shapes |= {f"loihi.tie.{k}.place": (ties,)}
            shapes |= {f"loihi.tie.{k}.{role}": (2, ties) for role in ("state", "next")}
            _check_indices(bundle, f"loihi.tie.{k}.place", place, int(np.prod(state.shape)))
    _check_shapes(bundle, golden, shapes)
    _check_indices(bundle, "loihi.step.rows", rows, len(golden["step.input"]))
    return True


def has_float16(bundle: Bundle, golden: Mapping[str, Floats]) -> bool:
    """Whether an engine whose sums are in float16 has data of its own. Raises BundleError where they are unusable."""
    if int(golden.get("fp16.format", np.zeros(())).max(initial=0)) != FORMAT:
        return False
    shown, free = golden.get("fp16.step.input", np.zeros(())), len(golden["free.input"])
    rows = max(len(shown) if shown.ndim else 0, 1)
    shapes: dict[str, tuple[int, ...]] = {
        "fp16.step.input": (rows, *bundle.inputs[0].shape),
        "fp16.step.output": (rows, bundle.classes),
        "fp16.step.output_bound": (rows, bundle.classes),
        "fp16.step.unit": (len(bundle.states),),
        "fp16.free.readout": (free, bundle.classes),
        "fp16.free.tight": (free,),
        "fp16.free.margin": (free,),
        "fp16.free.loose": (),
        "fp16.free.margin_floor": (free,),
    }
    for k, state in enumerate(bundle.states):
        size = int(np.prod(state.shape))
        place = golden.get(f"fp16.step.place.{k}")
        if place is not None:
            shapes[f"fp16.step.place.{k}"] = (place.size,)
            _check_indices(bundle, f"fp16.step.place.{k}", place, size)
        looked = size if place is None else place.size
        shapes[f"fp16.step.state.{k}"] = (rows, *state.shape)
        shapes |= {f"fp16.step.{role}.{k}": (rows, looked) for role in ("next", "next_bound")}
    _check_shapes(bundle, golden, shapes)
    return True


def _check_indices(bundle: Bundle, name: str, found: Floats, size: int) -> None:
    if found.dtype.kind not in "iu" or found.size == 0 or found.min() < 0 or found.max() >= size:
        raise BundleError(f"{bundle.path}: golden array {name!r} holds places that there are not", f"of {size}")


def _expected_shapes(bundle: Bundle, golden: Mapping[str, Floats]) -> dict[str, tuple[int, ...]]:
    entry = bundle.inputs[0]
    steps, free = (
        len(golden[name]) if golden.get(name, np.zeros(())).ndim else 0 for name in ("step.input", "free.input")
    )
    steps, free = max(steps, 1), max(free, 1)
    window = (bundle.timesteps, *entry.shape) if entry.sequence else entry.shape
    shapes: dict[str, tuple[int, ...]] = {
        "step.input": (steps, *entry.shape),
        "step.output": (steps, bundle.classes),
        "step.output_bound": (steps, bundle.classes),
        "free.input": (free, *window),
        "free.readout": (free, bundle.classes),
        "free.tight": (free,),
        "free.margin": (free,),
        "free.loose": (),
        "free.margin_floor": (),
        "tie.silent": (len(bundle.states),),
    }
    for k, state in enumerate(bundle.states):
        shapes |= {f"step.{role}.{k}": (steps, *state.shape) for role in ("state", "next")}
        shapes[f"step.next_bound.{k}"] = (steps, *state.shape[:1], *(-1 for _ in state.shape[1:]))
        if f"tie.{k}.state" in golden:
            rows = len(golden[f"tie.{k}.state"]) if golden[f"tie.{k}.state"].ndim else 0
            shapes |= {f"tie.{k}.{role}": (max(rows, 3), *state.shape) for role in ("state", "next", "hit")}
            shapes[f"tie.{k}.bound"] = ()
            if f"tie.{k}.others" in golden:
                shapes[f"tie.{k}.others"] = (max(rows, 3), len(bundle.states))
    return shapes


def _fits(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(found) == len(expected) and all(b in (-1, a) for a, b in zip(found, expected, strict=True))
