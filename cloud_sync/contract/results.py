"""Packs rows and gaps into one result event, and reads and proves such an event.

Rules: an event covers ``first`` to ``last`` without a hole and without an overlap; its id follows from what it covers,
so a redelivery is recognised; its size is bounded. A row whose body does not fit is delivered with the size and the
hash of the body in its place: a stream never stops at one row. Pure: decides nothing about when to send.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from cloud_sync.contract.messages import (
    JSON_TYPE,
    RESULTS_TYPE,
    Gap,
    Predecessor,
    ResultData,
    ResultEvent,
    Row,
    decode,
    source_uri,
)
from cloud_sync.contract.topics import ContractError

# AWS IoT Core takes 128 KiB, the least of the usual brokers; the rest is for the topic and the envelope.
PAYLOAD_LIMIT_BYTES = 120_000
ENVELOPE_BYTES = 4_096  # room for everything in an event but rows and gaps: ten names of at most 255 bytes
KEY_LIMIT_BYTES = 1_024  # a longer key is named by its hash, in a row that is too large

_ROWS = b'"rows":'  # cannot occur earlier: within a JSON string the quotes would be escaped
_END = b"}}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an event comes from."""

    fleet: str
    device: str
    epoch: str
    predecessor: Predecessor | None
    stream: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one event covers: encoded rows and gaps, in order. ``time`` is that of the last row."""

    first: int
    last: int
    rows: tuple[bytes, ...]
    gaps: tuple[Gap, ...]
    time: str | None = None

    @property
    def size_bytes(self) -> int:
        """An upper bound of the payload's size."""
        gaps = sum(len(msgspec.json.encode(gap)) + 1 for gap in self.gaps)
        return ENVELOPE_BYTES + gaps + sum(len(row) + 1 for row in self.rows)


def event_id(epoch: str, stream: str, first: int, last: int) -> str:
    """The id of the event that covers these rows: the same whenever it is sent."""
    return f"{epoch}/{stream}/{first}-{last}"


def encode_row(row: Row, limit_bytes: int = PAYLOAD_LIMIT_BYTES) -> bytes:
    """A row as JSON that fits into an event of ``limit_bytes``; a body that is not JSON or too large is replaced."""
    body = bytes(row.result)
    if not _is_json(body):
        row = msgspec.structs.replace(row, result=_omitted("unreadable", body))
    encoded = msgspec.json.encode(row)
    if len(encoded) > limit_bytes - ENVELOPE_BYTES:
        encoded = msgspec.json.encode(_shortened(row, body))
    return encoded


def pack(origin: Origin, part: Part, *, historical: bool) -> bytes:
    """The payload of one event."""
    rows = b"[" + b",".join(part.rows) + b"]"
    data = ResultData(
        device=origin.device,
        epoch=origin.epoch,
        predecessor=origin.predecessor,
        stream=origin.stream,
        first=part.first,
        last=part.last,
        historical=historical,
        gaps=part.gaps,
        digest=hashlib.sha256(rows).hexdigest(),
        rows=(),
    )
    event = ResultEvent(
        specversion="1.0",
        id=event_id(origin.epoch, origin.stream, part.first, part.last),
        source=source_uri(origin.fleet, origin.device),
        type=RESULTS_TYPE,
        subject=origin.stream,
        time=part.time,
        datacontenttype=JSON_TYPE,
        data=data,
    )
    # The rows are spliced in as the bytes that were hashed, so that they are encoded once and the digest is theirs.
    return msgspec.json.encode(event).removesuffix(b"[]" + _END) + rows + _END


def unpack(payload: bytes) -> ResultEvent:
    """Read an event and prove it: nothing unknown, covered without hole or overlap, digest right.

    Raises ContractError.
    """
    event = decode(ResultEvent, payload)
    data = event.data
    if event.subject != data.stream:
        raise ContractError(f"event {event.id!r}: its subject {event.subject!r} is not its stream {data.stream!r}")
    if event.id != event_id(data.epoch, data.stream, data.first, data.last):
        raise ContractError(f"event {event.id!r}: its id does not say what it covers")
    _check_cover(event)
    if rows_digest(payload) != data.digest:
        raise ContractError(f"event {event.id!r}: its rows are not those that were sent; the digest differs")
    return event


def rows_digest(payload: bytes) -> str:
    """The SHA-256 of the rows as they stand in a payload. Raises ContractError when they are not at its end."""
    start = payload.find(_ROWS)
    if start < 0 or not payload.endswith(_END):
        raise ContractError("not a result event as it was sent: the rows are not at its end")
    return hashlib.sha256(payload[start + len(_ROWS) : -len(_END)]).hexdigest()


def _check_cover(event: ResultEvent) -> None:
    spans = [(row.seq, row.seq) for row in event.data.rows] + [(gap.first, gap.last) for gap in event.data.gaps]
    expected = event.data.first
    for first, last in sorted(spans):
        if first != expected or last < first:
            raise ContractError(f"event {event.id!r}: {expected} is expected where {first} to {last} stands")
        expected = last + 1
    if expected != event.data.last + 1:
        raise ContractError(f"event {event.id!r}: covers up to {expected - 1}, not {event.data.last}")
    if sorted(event.data.rows, key=lambda row: row.seq) != list(event.data.rows):
        raise ContractError(f"event {event.id!r}: its rows are not in order")


def _shortened(row: Row, body: bytes) -> Row:
    key = row.key
    if key is not None and len(key.encode()) > KEY_LIMIT_BYTES:
        key = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    return msgspec.structs.replace(row, key=key, result=_omitted("too large", body))


def _omitted(reason: str, body: bytes) -> msgspec.Raw:
    facts = {"omitted": reason, "size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    return msgspec.Raw(msgspec.json.encode(facts))


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
