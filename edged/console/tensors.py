"""JSON tensors of the Open Inference Protocol v2 → arrays of one frame each.

Rules: a tensor has the model's input name, ``[*shape]`` for one frame or ``[n, *shape]`` for n (a sequence input:
``[T, *shape]``); its datatype is the declared one, or one that converts to it without loss. Values must be finite and
fit their datatype. Data may be flat in row-major order or nested. Checks the form only: what the values mean is the
model's business. Source: Open Inference Protocol, "Inference Request JSON Object".
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import Raw, Struct
from msgspec.json import decode

from edged.console.answers import Refused
from edged.domain import Array
from edged.ports import Model, TensorSpec

MAX_ROWS = 64  # the largest batch that a pipeline may be configured to take
NUMBER_BYTES = 26  # "-1.7976931348623157e+308, ": the longest number that JSON writers print
ENVELOPE_BYTES = 64 * 1024  # names, id, parameters, white space
ROWS_BYTES = 8 * 1024 * 1024  # of one request with several rows: parsing takes about eight times that, for a moment

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class Tensor(Struct, frozen=True, kw_only=True):
    """A tensor as it was sent; ``data`` is still JSON."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: Raw


def datatype_of(spec: TensorSpec) -> str:
    """The protocol's name of an input's type."""
    return _NAMES[np.dtype(spec.dtype).name]


def sample_shape(spec: TensorSpec, timesteps: int) -> tuple[int, ...]:
    """Shape of one frame: (*shape), or (T, *shape) for a sequence."""
    return (timesteps, *spec.shape) if spec.sequence else spec.shape


def body_limit(model: Model) -> int:
    """Bytes that the largest sensible request for this model may have."""
    row = NUMBER_BYTES * sum(math.prod(sample_shape(spec, model.timesteps)) for spec in model.inputs)
    return ENVELOPE_BYTES + row * max(1, min(MAX_ROWS, ROWS_BYTES // max(row, 1)))


def frames(tensor: Tensor, model: Model) -> list[Array]:
    """The frames in a tensor, each of the model's sample shape. Raises Refused (400)."""
    if len(model.inputs) != 1:
        raise Refused(400, f"model {model.name} takes {len(model.inputs)} inputs; requests carry frames of one tensor")
    spec = model.inputs[0]
    if tensor.name != spec.name:
        raise Refused(400, f"model {model.name} has no input {tensor.name!r}; its input is {spec.name!r}")
    shape = sample_shape(spec, model.timesteps)
    rows = _rows(tensor, shape)
    values = _values(tensor, _dtype(tensor, spec))
    return list(values.reshape(rows, *shape))


def _rows(tensor: Tensor, shape: tuple[int, ...]) -> int:
    if tensor.shape == shape:
        return 1
    if tensor.shape[1:] == shape and 1 <= tensor.shape[0] <= MAX_ROWS:
        return tensor.shape[0]
    plain = ", ".join(map(str, shape))
    raise Refused(
        400,
        f"input {tensor.name!r} has shape {list(tensor.shape)}; "
        f"expected [{plain}] for one frame or [n, {plain}] for n frames (at most {MAX_ROWS})",
    )


def _dtype(tensor: Tensor, spec: TensorSpec) -> np.dtype[np.generic]:
    declared = datatype_of(spec)
    name = DATATYPES.get(tensor.datatype)
    if name is None or not np.can_cast(name, spec.dtype, "safe"):
        raise Refused(
            400,
            f"input {tensor.name!r} has datatype {tensor.datatype!r}; expected {declared}, "
            "or one that converts to it without loss",
        )
    return np.dtype(name)


def _values(tensor: Tensor, dtype: np.dtype[np.generic]) -> Array:
    where = f"data of input {tensor.name!r}"
    try:
        values = np.asarray(decode(tensor.data))
    except (ValueError, RecursionError, OverflowError):
        raise Refused(400, f"{where} is not an array of numbers, flat or nested evenly") from None
    if values.dtype.kind not in _ACCEPTED[dtype.kind]:
        raise Refused(400, f"{where} holds something else than {tensor.datatype} values")
    count = math.prod(tensor.shape)
    if values.size != count or (values.ndim != 1 and values.shape != tensor.shape):
        held = f"{values.size} values" if values.ndim == 1 else f"shape {list(values.shape)}"
        raise Refused(400, f"{where} holds {held}; its shape {list(tensor.shape)} has {count} values")
    return _fitted(values, dtype, f"{where} does not fit {tensor.datatype}")


# Which kinds of NumPy array, as parsed from JSON, may become which kind of tensor.
_ACCEPTED = {"b": "b", "u": "iu", "i": "iu", "f": "fiu"}


def _fitted(values: Array, dtype: np.dtype[np.generic], complaint: str) -> Array:
    if dtype.kind in "iu":
        bounds = np.iinfo(str(dtype))
        if int(values.min()) < bounds.min or int(values.max()) > bounds.max:
            raise Refused(400, f"{complaint}: values must be {bounds.min} to {bounds.max}")
    with np.errstate(over="ignore"):
        fitted = values.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(fitted).all():
        raise Refused(400, f"{complaint}: every value must be finite")
    return fitted
