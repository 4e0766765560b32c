"""JSON objects that cross the wire, and the error for everything that is not what it should be.

Pure; standard library only, Python 3.8.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

MAX_TEXT = 4096  # characters of a message for people

T = TypeVar("T")


class WireError(Exception):
    """The peer sent something that the protocol does not allow."""


def encode_object(table: dict[str, Any]) -> bytes:
    """A JSON body."""
    return json.dumps(table, separators=(",", ":")).encode()


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises WireError."""
    try:
        table = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"a body that is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise WireError(f"a body that is not a JSON object: {body[:40]!r}")
    return table


def get_value(table: dict[str, Any], name: str, kind: type[T]) -> T:
    """The value of a type. Raises WireError."""
    value = table.get(name)
    if not isinstance(value, kind):
        raise WireError(f"{name} is {value!r}")
    return value


def get_text(table: dict[str, Any], name: str) -> str:
    """A text, shortened to what people read. Raises WireError."""
    return get_value(table, name, str)[:MAX_TEXT]


def get_numbers(table: dict[str, Any], name: str) -> dict[str, float]:
    """Numbers by name. Raises WireError."""
    found = get_value(table, name, dict)
    if not all(type(value) in (int, float) for value in found.values()):
        raise WireError(f"{name} are not numbers")
    return {str(key): float(value) for key, value in found.items()}


def get_count(table: dict[str, Any], name: str) -> int:
    """A whole number, at least 1. Raises WireError."""
    value = table.get(name)
    if type(value) is not int or not 0 < value < 1 << 40:
        raise WireError(f"{name} is {value!r}")
    return value
