"""Reads the fields of one NIR node strictly: what is missing, unknown, of another type or not finite is refused."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cloud_sync.convert.nir.file import Node

Doubles = NDArray[np.float64]
_TYPES = {"input_type", "output_type"}  # derived; some versions of nir write them


class UnfitError(Exception):
    """Why one node cannot be imported."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def unfit(reason: str, hint: str = "") -> NoReturn:
    """Refuse the node that is being read."""
    raise UnfitError(reason, hint)


def check_known(node: Node, known: set[str]) -> None:
    """Refuse fields that nir 1.0.8 does not have: they may change what the node means."""
    unknown = sorted(set(node.fields) - known - _TYPES)
    if unknown:
        unfit(f"the field {unknown[0]!r} is not known", "files of nir 1.0.8 and before can be read")


def numbers(node: Node, name: str, default: float | None = None) -> Doubles:
    """A field of finite numbers; a missing one is the default where there is one."""
    value = node.fields.get(name)
    if value is None and default is not None:
        return np.asarray(default, np.float64)
    if value is None:
        unfit(f"it has no field {name!r}")
    if not isinstance(value, np.ndarray):
        unfit(f"its {name} holds no numbers")
    array = np.asarray(value, np.float64)
    if not np.isfinite(array).all():
        unfit(f"its {name} holds NaN or infinity")
    with np.errstate(over="ignore"):
        if not np.isfinite(array.astype(np.float32)).all():
            unfit(f"its {name} holds numbers beyond float32")
    return array


def whole(node: Node, name: str, length: int, least: int = 0) -> tuple[int, ...]:
    """A field of ``length`` whole numbers; one number stands for all."""
    values = numbers(node, name).ravel()
    if values.size not in (1, length) or (values != np.round(values)).any() or (values < least).any():
        unfit(f"its {name} is {_shown(values)}", f"{length} whole numbers, at least {least}")
    return tuple(int(value) for value in np.broadcast_to(values, (length,)))


def each(node: Node, name: str, shape: tuple[int, ...], default: float | None = None) -> Doubles:
    """A parameter of a layer of ``shape``, for each element; one number serves all."""
    values = numbers(node, name, default)
    fits = values.ndim == len(shape) and all(own in (1, full) for own, full in zip(values.shape, shape, strict=True))
    if values.size != 1 and not fits:
        unfit(f"its {name} has shape {list(values.shape)}, what comes in has {list(shape)}")
    return np.broadcast_to(values.reshape(()) if values.size == 1 else values, shape)


def compact(values: Doubles) -> NDArray[Any]:
    """The same for a neuron's parameter: one number, one a channel, or all, whichever is enough; float32."""
    single = values.astype(np.float32)
    if single.size and (single == single.flat[0]).all():
        return np.array(single.flat[0])
    if single.ndim > 1:
        first = single.reshape(len(single), -1)[:, :1].reshape(-1, *(1,) * (single.ndim - 1))
        if (single == first).all():
            return first
    return single


def _shown(values: Doubles) -> str:
    return np.array2string(values, threshold=6, separator=", ")
