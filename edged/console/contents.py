"""Binary contents of requests: the part of a body behind its JSON, and files that travel as tensors of type BYTES.

Rules: the header ``Inference-Header-Content-Length`` says where the JSON ends; each input takes the
``binary_data_size`` bytes that its parameters name, in order, and none are left. A tensor of numbers is little-endian
in row-major order. A tensor of type BYTES holds one file a frame, each behind its length (4 bytes, little-endian), in
the format that its parameter ``content_type`` names. Source: KServe, "Binary Tensor Data Extension".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edged.console.answers import Refused
from edged.domain import Array, Payload
from edged.errors import FrameRejected

HEADER = "inference-header-content-length"
LENGTH_BYTES = 4
FILE_BYTES = 26 << 20  # of a request with binary contents: a 4K colour image; all bodies together may have 32 MiB

Decode = Callable[[str, bytes], Payload]  # name of a file, its bytes; raises FrameRejected


def split(body: memoryview, declared: str | None) -> tuple[memoryview, memoryview | None]:
    """The JSON of a request, and what stands behind it; None where the request says of no binary contents."""
    if declared is None:
        return body, None
    size = int(declared) if declared.isdecimal() and len(declared) < 12 else -1
    if not 0 < size <= len(body):
        raise Refused(400, f"{HEADER} is {declared!r}; it must be the bytes of JSON, at most {len(body)}")
    return body[:size], body[size:]


def numbers(data: memoryview, dtype: np.dtype[np.generic], count: int, where: str) -> Array:
    """``count`` values of a type. Raises Refused (400)."""
    if len(data) != count * dtype.itemsize:
        raise Refused(400, f"{where} has {len(data)} bytes; its shape and datatype need {count * dtype.itemsize}")
    if dtype.kind == "b" and len(data) and max(data) > 1:
        raise Refused(400, f"{where} holds a BOOL other than 0 and 1")
    return np.frombuffer(data, dtype.newbyteorder("<"))


def files(data: memoryview, count: int, content_type: str, where: str, decode: Decode) -> list[Payload]:
    """The payloads of ``count`` files. Raises Refused (400)."""
    try:
        return [decode(f"frame.{content_type}", bytes(one)) for one in _elements(data, count, where)]
    except FrameRejected as error:
        raise Refused(400, f"{where}: {error}") from None


def _elements(data: memoryview, count: int, where: str) -> Iterator[memoryview]:
    for _ in range(count):
        size = int.from_bytes(data[:LENGTH_BYTES], "little")
        end = LENGTH_BYTES + size
        if len(data) < end:
            raise Refused(400, f"{where} is cut off: each of its {count} elements is 4 bytes of length, and its bytes")
        yield data[LENGTH_BYTES:end]
        data = data[end:]
    if data:
        raise Refused(400, f"{where} has {len(data)} bytes behind its last element")
