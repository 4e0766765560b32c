"""Open Inference Protocol v2: one request → frames → how they ended → one answer. Pure: no I/O.

Rules: the request's ``id`` is the frame's identity (of several rows: ``id#0``, ``id#1`` …), so that the same request,
sent again, gets the first result and not a second one. An answer speaks of stored results only. When any row has no
result, the whole answer is the error of the first such row; asking again with the same id is always safe.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edged.console.answers import Refused, Stored
from edged.console.contents import Decode, split
from edged.console.tensors import Tensor, datatype_of, frames, sample_shape
from edged.domain import Kind, Payload, Receipt
from edged.ports import Ended, Model

MAX_ID = 200  # characters of an id; together with the row it stays a readable key
OUTPUTS = ("label", "index", "scores")


class _Wanted(msgspec.Struct, frozen=True):
    name: str


class _Request(msgspec.Struct, frozen=True):
    inputs: tuple[Tensor, ...]
    id: str | None = None
    outputs: tuple[_Wanted, ...] = ()


class _Prediction(msgspec.Struct, frozen=True):
    index: int
    label: str
    scores: tuple[float, ...]


class _Fault(msgspec.Struct, frozen=True):
    code: str
    message: str


class _Failure(msgspec.Struct, frozen=True):
    error: _Fault


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of the answer, flat in row-major order."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The protocol's inference response."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, str | int | bool]
    outputs: list[Output]


@dataclass(frozen=True, slots=True)
class Job:
    """A checked request: the frames by key, and which outputs were asked for."""

    id: str
    frames: dict[str, Payload]
    outputs: tuple[str, ...]


def parse(body: memoryview, header_bytes: str | None, model: Model, decode: Decode) -> Job:
    """Check a request for ``model``. Raises Refused (400) that says what is wrong and what is expected.

    ``header_bytes``: where its JSON ends, as its header says, if binary contents follow.
    """
    text, binary = split(body, header_bytes)
    try:
        request = msgspec.json.decode(text, type=_Request)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(400, f"the body is not an inference request in JSON: {error}") from None
    if len(request.inputs) != 1:
        raise Refused(400, f"the request holds {len(request.inputs)} inputs; expected one")
    identity = uuid.uuid4().hex if request.id is None else _checked_id(request.id)
    rows = frames(request.inputs[0], model, binary, decode)
    keys = [identity] if len(rows) == 1 else [f"{identity}#{row}" for row in range(len(rows))]
    return Job(identity, dict(zip(keys, rows, strict=True)), _wanted(request.outputs))


def answer(job: Job, model: Model, ended: Sequence[Ended]) -> Answer:
    """Build the response for frames that ended in the order of the job. Raises Refused when one has no result."""
    receipts = [_receipt(job, row, end) for row, end in enumerate(ended)]
    predictions = [msgspec.json.decode(receipt.body, type=_Prediction) for receipt in receipts]
    rows = len(receipts)
    classes = len(predictions[0].scores)
    tensors = {
        "label": _output("label", "BYTES", (rows,), [p.label for p in predictions]),
        "index": _output("index", "INT64", (rows,), [p.index for p in predictions]),
        "scores": _output("scores", "FP32", (rows, classes), [score for p in predictions for score in p.scores]),
    }
    return Answer(
        model_name=model.name,
        model_version=model.version,
        id=job.id,
        parameters=_parameters(receipts),
        outputs=[tensors[name] for name in job.outputs] + ([] if rows == 1 else _identities(receipts)),
    )


def metadata(model: Model) -> dict[str, Any]:
    """The protocol's model metadata response; -1 stands for the number of rows."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "edged_snn",
        "inputs": [
            {"name": spec.name, "datatype": datatype_of(spec), "shape": [-1, *sample_shape(spec, model.timesteps)]}
            for spec in model.inputs
        ],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "index", "datatype": "INT64", "shape": [-1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, model.classes]},
        ],
        "parameters": {"digest": model.digest, "timesteps": model.timesteps, **_events(model)},
    }


def _events(model: Model) -> dict[str, Any]:
    """How a model bins the recordings of an event camera; nothing where it takes none."""
    window = model.inputs[0].events if model.inputs else None
    if window is None:
        return {}
    return {f"events_{name}": value for name, value in dataclasses.asdict(window).items()}


def _checked_id(identity: str) -> str:
    if not 1 <= len(identity) <= MAX_ID or not identity.isprintable() or "#" in identity:
        raise Refused(400, f"id must be 1 to {MAX_ID} printable characters without '#', which numbers the rows")
    return identity


def _wanted(outputs: Sequence[_Wanted]) -> tuple[str, ...]:
    names = tuple(output.name for output in outputs) or OUTPUTS
    unknown = [name for name in names if name not in OUTPUTS]
    if unknown:
        raise Refused(400, f"there is no output {unknown[0]!r}; outputs are {', '.join(OUTPUTS)}")
    return names


def _receipt(job: Job, row: int, ended: Ended) -> Receipt:
    """The receipt of a result. Raises Refused for every other end."""
    where = f"row {row}: " if len(job.frames) > 1 else ""
    if ended.receipt is None:
        stops = ended.kind is None
        reason = "the daemon is stopping" if stops else "the queue was full and the frame was dropped"
        raise Refused(503, f"{where}{reason}; send it again with the same id", retry=True)
    if ended.receipt.kind is not Kind.RESULT:
        fault = msgspec.json.decode(ended.receipt.body, type=_Failure).error
        status = 422 if ended.receipt.kind is Kind.REJECTED else 500
        stored = Stored(ended.receipt.kind.value, fault.code, ended.receipt.stream, ended.receipt.seq)
        raise Refused(status, f"{where}{fault.message} [{fault.code}]", stored=stored)
    return ended.receipt


def _parameters(receipts: Sequence[Receipt]) -> dict[str, str | int | bool]:
    first = receipts[0]
    if len(receipts) > 1:
        return {"stream": first.stream, "rows": len(receipts)}
    return {"epoch": first.epoch, "stream": first.stream, "seq": first.seq, "duplicate": first.duplicate}


def _identities(receipts: Sequence[Receipt]) -> list[Output]:
    """Where each of several rows is stored: parameters hold no arrays, so these are outputs."""
    shape = (len(receipts),)
    return [
        _output("epoch", "BYTES", shape, [receipt.epoch for receipt in receipts]),
        _output("seq", "INT64", shape, [receipt.seq for receipt in receipts]),
        _output("duplicate", "BOOL", shape, [receipt.duplicate for receipt in receipts]),
    ]


def _output(name: str, datatype: str, shape: tuple[int, ...], data: list[Any]) -> Output:
    return Output(name=name, shape=shape, datatype=datatype, data=data)
