"""Reads JSON from strangers: bounded, no repeated keys, no NaN, and nothing but a BundleError when it is none.

Two readers that disagree about a repeated key or a NaN could see two different bundles behind one digest.
"""

from __future__ import annotations

import json
import reprlib
from typing import Any

from edged.errors import BundleError


def read_json(data: bytes, name: str, limit: int) -> object:
    """Parse UTF-8 JSON of at most ``limit`` bytes; ``name`` is for the message. Raises BundleError."""
    if len(data) > limit:
        raise BundleError(f"{name} has {len(data)} bytes", f"at most {limit}")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is not JSON: {clipped(str(error))}") from None


def shown(value: object) -> str:
    """A value as a message shows it: never longer than a line."""
    return "missing" if value is None else reprlib.repr(value)


def clipped(text: str) -> str:
    """Text of others, cut where it would flood a message."""
    return text if len(text) <= 200 else text[:200] + "…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(k for k in keys if keys.count(k) > 1))} appears twice in one object")
    return table


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not a number of JSON")
