"""A message of a broker → the key and the content of a frame. Pure.

What cannot be one raises FrameRejected with the reason: such a message will never be a frame, however often it comes.
Shapes are the model's business; here flat and raw numbers get theirs.
"""

from __future__ import annotations

import hashlib
import io
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from edged.domain import Array
from edged.errors import FrameRejected
from edged.feeder_config import MqttTopic
from edged.feeders.daemon import MAX_KEY, Content


@dataclass(frozen=True, slots=True)
class Message:
    """What the broker delivered. ``properties``: MQTT 5 user properties, the last of a name."""

    topic: str
    payload: bytes
    properties: Mapping[str, str]


def frame_of(feeder: str, rule: MqttTopic, shape: tuple[int, ...], message: Message) -> tuple[str, Content]:
    """Key and content of a frame for a model of this input shape. Raises FrameRejected."""
    parsed = _json(message.payload) if rule.payload == "json" else None
    key = _key(feeder, rule, message, parsed)
    if rule.payload == "json":
        return key, npy(_shaped(_numbers(_member(parsed, rule.values), rule.dtype), rule.shape, shape))
    if rule.payload == "raw":
        return key, npy(_shaped(_raw(message.payload, rule.dtype), rule.shape, shape))
    return key, Content(rule.payload, message.payload)


def npy(array: Array) -> Content:
    """An array as it travels."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return Content("npy", file.getvalue())


def _json(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameRejected(f"not JSON: {error}") from None


def _member(parsed: Any, name: str) -> Any:
    if not name:
        return parsed
    if not isinstance(parsed, dict) or name not in parsed:
        raise FrameRejected(f"no values: the payload is no JSON object with {name!r}")
    return parsed[name]


def _numbers(values: Any, dtype: str) -> Array:
    if not isinstance(values, list):
        raise FrameRejected("no values: what was found is no array of numbers")
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, RecursionError):
        raise FrameRejected("no values: the array is not nested evenly") from None
    if array.dtype.kind not in "iuf" or not array.size:
        raise FrameRejected("no values: the array holds something else than numbers, or nothing")
    target = np.dtype(dtype)
    if target.kind in "iu":
        bounds = np.iinfo(target)
        if array.dtype.kind == "f" or array.min() < bounds.min or array.max() > bounds.max:
            raise FrameRejected(f"bad values: they must be whole numbers from {bounds.min} to {bounds.max}")
    with np.errstate(over="ignore"):
        made = array.astype(target)
    if made.dtype.kind == "f" and not np.isfinite(made).all():
        raise FrameRejected(f"bad values: beyond what {dtype} holds")
    return made


def _raw(payload: bytes, dtype: str) -> Array:
    kind = np.dtype(dtype).newbyteorder("<")
    if not payload or len(payload) % kind.itemsize:
        raise FrameRejected(f"bad size: {len(payload)} bytes are not a whole number of {dtype}")
    return np.frombuffer(payload, kind)


def _shaped(array: Array, wanted: tuple[int, ...], of_model: tuple[int, ...]) -> Array:
    """Flat numbers in the shape that was set, or that of the model's input; anything else as it is."""
    if wanted:
        if array.size != math.prod(wanted):
            raise FrameRejected(f"bad size: {array.size} values do not fill the shape {list(wanted)}")
        return array.reshape(wanted)
    return array.reshape(of_model) if array.ndim == 1 and array.size == math.prod(of_model) else array


def _key(feeder: str, rule: MqttTopic, message: Message, parsed: Any) -> str:
    how, _, name = rule.key.partition(":")
    if how == "each":
        value = uuid.uuid4().hex
    elif how == "digest":
        value = hashlib.sha256(message.payload).hexdigest()[:32]
    elif how == "property":
        value = message.properties.get(name, "")
    else:
        found = parsed.get(name, "") if isinstance(parsed, dict) else ""
        value = str(found) if isinstance(found, (str, int)) and not isinstance(found, bool) else ""
    if not value:
        raise FrameRejected(f"no key: the message has no {how} {name!r}")
    key = f"{feeder}:{message.topic}:{value}"
    if len(key) <= MAX_KEY and key.isprintable() and "#" not in key:
        return key
    return f"{feeder}:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"
