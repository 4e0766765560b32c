"""What a pipeline writes into its stream: the entries of results, errors, rejected and dropped frames. Pure."""

from __future__ import annotations

import time

import msgspec

from edged.domain import Entry, FrameId, Kind, Prediction
from edged.ports import Model

# Why frames are dropped, for machines: the codes of DROPPED entries.
QUEUE_FULL = "queue-full"
OVERTAKEN = "overtaken"  # a live source had a later frame before this one could be taken
PRESSURE = "pressure"  # the device is hard pressed, and admits only a share of the frames


def entry_of(
    stream: str, model: Model, engine: str, frame: FrameId, received_ns: int, kind: Kind, body: bytes
) -> Entry:
    """The entry of one frame; ``received_ns`` by CLOCK_BOOTTIME."""
    return Entry(
        stream=stream,
        kind=kind,
        source=frame.source,
        frame=frame,
        received_ns=received_ns,
        body=body,
        model=f"{model.name}@{model.version}",
        digest=model.digest,
        engine=engine,
    )


def shed_entry(stream: str, source: str, count: int, reason: str, why: str) -> Entry:
    """The entry that says that frames of a source were dropped; ``reason`` is one of the codes above."""
    return Entry(
        stream=stream,
        kind=Kind.DROPPED,
        source=source,
        frame=None,
        received_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        body=reason_body(reason, why),
        count=count,
    )


def reason_body(code: str, message: str) -> bytes:
    """The body of a frame that has no result."""
    return msgspec.json.encode({"error": {"code": code, "message": message}})


def prediction_body(prediction: Prediction) -> bytes:
    """The body of a result."""
    return msgspec.json.encode(prediction)
