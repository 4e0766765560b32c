"""Tensors of the Open Inference Protocol v2 → payloads of one frame each.

Rules: a tensor has the model's input name, ``[*shape]`` for one frame or ``[n, *shape]`` for n (a sequence input:
``[T, *shape]``); its datatype is the declared one, or one that converts to it without loss. Values must be finite and
fit their datatype. Data may be flat in row-major order or nested, or binary behind the JSON (``contents``); files of
type BYTES have the shape ``[1]`` or ``[n]``. Checks the form only: what the values mean is the model's business.
Source: Open Inference Protocol, "Inference Request JSON Object".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Raw, Struct
from msgspec.json import decode

from edged.console import contents
from edged.console.answers import Refused
from edged.domain import Array, Payload
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
FILES = "BYTES"
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class Parameters(Struct, frozen=True):
    """What a tensor says of its binary contents; None: they are ``data``, in JSON."""

    binary_data_size: int | None = None
    content_type: str = ""


class Tensor(Struct, frozen=True, kw_only=True):
    """A tensor as it was sent; ``data`` is still JSON."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: Raw = Raw(b"")
    parameters: Parameters = Parameters()


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


def frames(tensor: Tensor, model: Model, binary: memoryview | None, decode: contents.Decode) -> Sequence[Payload]:
    """The frames in a tensor: arrays of the model's sample shape, or what its files hold. Raises Refused (400)."""
    if len(model.inputs) != 1:
        raise Refused(400, f"model {model.name} takes {len(model.inputs)} inputs; requests carry frames of one tensor")
    spec = model.inputs[0]
    if tensor.name != spec.name:
        raise Refused(400, f"model {model.name} has no input {tensor.name!r}; its input is {spec.name!r}")
    data = _binary(tensor, binary)
    if data is not None and tensor.datatype == FILES:
        return contents.files(data, _files(tensor), tensor.parameters.content_type, _where(tensor), decode)
    shape = sample_shape(spec, model.timesteps)
    rows = _rows(tensor, shape)
    dtype = _dtype(tensor, spec)
    values = (
        _values(tensor, dtype)
        if data is None
        else _finite(contents.numbers(data, dtype, math.prod(tensor.shape), _where(tensor)), tensor)
    )
    return list(values.reshape(rows, *shape))


def _binary(tensor: Tensor, binary: memoryview | None) -> memoryview | None:
    """The binary contents of the request's one tensor; None where its data are JSON."""
    size = tensor.parameters.binary_data_size
    if (size or 0) != len(binary or b""):
        raise Refused(
            400, f"{_where(tensor)}: binary_data_size is {size}; {len(binary or b'')} bytes are behind the JSON"
        )
    if size is None:
        if not bytes(tensor.data):
            raise Refused(400, f"input {tensor.name!r} has neither data nor binary_data_size")
        return None
    return binary


def _files(tensor: Tensor) -> int:
    """How many files a tensor of type BYTES holds."""
    if len(tensor.shape) != 1 or not 1 <= tensor.shape[0] <= MAX_ROWS:
        told = f"input {tensor.name!r} has shape {list(tensor.shape)}"
        raise Refused(400, f"{told}; expected [n] for n files (at most {MAX_ROWS})")
    return tensor.shape[0]


def _where(tensor: Tensor) -> str:
    return f"data of input {tensor.name!r}"


def _finite(values: Array, tensor: Tensor) -> Array:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Refused(400, f"{_where(tensor)}: every value must be finite")
    return values


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
    where = _where(tensor)
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
