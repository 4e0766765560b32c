"""The messages of the link as structs, and how they are read: strictly, with an error that says what is wrong.

Rules: JSON in UTF-8 that a person can read in ``mosquitto_sub``; times are RFC 3339 in UTC; a message to or from a
device holds no field that is not written here, and a new field means a new ``type``. Only the CloudEvents envelope
may hold more, because bridges add extension attributes. How results are packed and proved is in ``results``.
Pure: no clock, no network.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from cloud_sync.contract.topics import ContractError
from edged.status import EngineFacts, LinkFacts, ModelFacts, Status

RESULTS_TYPE: Final = "edged.results.v1"
ALARM_TYPE: Final = "edged.alarm.v1"
JSON_TYPE: Final = "application/json"
CLOUDEVENT_TYPE = "application/cloudevents+json; charset=utf-8"  # MQTT 5 Content Type, CloudEvents MQTT binding 3.2

M = TypeVar("M", bound=msgspec.Struct)

Seq = Annotated[int, msgspec.Meta(ge=1, description="sequence number of a row within its epoch and stream")]
Name = Annotated[str, msgspec.Meta(min_length=1)]
Time = Annotated[str, msgspec.Meta(description="RFC 3339, UTC", pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hexadecimal")]


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every message shares: immutable, named fields, none unknown."""


class Presence(_Message, frozen=True):
    """Topic ``status``: birth (online) and last will (offline) of one connection, with the same session id.

    A will can overtake the birth of the next connection: an offline whose session is not that of the last online
    says nothing. ``time`` is absent from a will, because the broker speaks it. An online device whose daemon cannot run
    says why in ``safe_mode``; it is spoken again when that changes.
    """

    device: Name
    session: Annotated[str, msgspec.Meta(min_length=1, description="new at every connection")]
    state: Literal["online", "offline"]
    reason: Literal["connected", "stopped", "lost"]
    version: str
    time: Time | None = None
    safe_mode: Annotated[str, msgspec.Meta(description="why the daemon cannot run; empty while it does")] = ""


class Info(_Message, frozen=True):
    """Topic ``info``: what the device consists of. Published at birth and when it changes."""

    device: Name
    session: str
    version: str
    machine: Annotated[str, msgspec.Meta(description="kernel, release and processor architecture")]
    engines: tuple[EngineFacts, ...] = ()
    models: tuple[ModelFacts, ...] = ()


class Health(_Message, frozen=True):
    """Topic ``health``: the facts that ``edged status`` shows, without the latest results.

    ``daemon`` is null while the daemon has written no facts; they are as old as their ``wall_time`` says.
    """

    device: Name
    session: str
    time: Time
    link: LinkFacts
    daemon: Status | None = None


class Predecessor(_Message, frozen=True):
    """The epoch before this one, and the last sequence number of this stream in it, as far as the device knows."""

    epoch: Name
    last: Annotated[int, msgspec.Meta(ge=0)] | None = None
    reason: str = ""


class Gap(_Message, frozen=True):
    """Sequence numbers that will never be delivered, and why. ``upper_bound``: the true end may lie below ``last``."""

    first: Seq
    last: Seq
    reason: Name
    upper_bound: bool = False


class Row(_Message, frozen=True):
    """One entry of a stream. ``result`` is the body as JSON: the prediction, or why there is none.

    ``key`` is null for dropped frames; ``count`` is how many frames the row stands for. ``latency_us`` is from the
    frame's receipt to its commit. ``time`` is null where the device had no clock to believe.
    """

    seq: Seq
    kind: Literal["result", "error", "rejected", "dropped"]
    source: str
    key: str | None
    count: Annotated[int, msgspec.Meta(ge=1)]
    time: Time | None
    clock_quality: str
    latency_us: float | None
    model: str
    digest: str
    engine: str
    result: msgspec.Raw


class ResultData(_Message, frozen=True):
    """Rows and gaps that together cover ``first`` to ``last`` of one stream, each number exactly once.

    ``historical``: stored before the connection that delivers it. ``digest`` is the SHA-256 of the bytes of ``rows``
    as they stand in the message, brackets included; ``rows`` is last, so they can be cut out without parsing.
    """

    device: Name
    epoch: Name
    predecessor: Predecessor | None
    stream: Name
    first: Seq
    last: Seq
    historical: bool
    gaps: tuple[Gap, ...]
    digest: Sha256
    rows: tuple[Row, ...]


class ResultEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Topic ``result/<stream>``: a CloudEvents 1.0 event in structured mode. Equal ``source`` and ``id``: redelivered.

    ``time`` is that of the last row; it is absent where there is none.
    """

    specversion: Literal["1.0"]
    id: Name
    source: Name
    type: Literal["edged.results.v1"]
    subject: Name
    time: Time | None = None
    datacontenttype: Literal["application/json"]
    data: ResultData


class Alarm(_Message, frozen=True):
    """Something that a person should know. ``name`` is the last level of the topic."""

    device: Name
    session: str
    name: Name
    severity: Literal["warning", "critical"]
    message: str


class AlarmEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Topic ``event/<type>``: a CloudEvents 1.0 event in structured mode."""

    specversion: Literal["1.0"]
    id: Name
    source: Name
    type: Literal["edged.alarm.v1"]
    subject: Name
    time: Time | None = None
    datacontenttype: Literal["application/json"]
    data: Alarm


class Ack(_Message, frozen=True):
    """Topic ``ack``: up to which sequence number the central database ``store`` holds each stream of ``epoch``."""

    store: Annotated[str, msgspec.Meta(min_length=1, description="identity of the database; a restored one is new")]
    epoch: Name
    acks: dict[Name, Annotated[int, msgspec.Meta(ge=0)]]


Message = Presence | Info | Health | ResultEvent | AlarmEvent | Ack


def encode(message: Message) -> bytes:
    """The payload of a message. Results are packed by ``results.pack`` instead, which also makes the digest."""
    return msgspec.json.encode(message)


def decode(kind: type[M], payload: bytes) -> M:
    """Read a payload strictly. Raises ContractError that names the field and what is wrong with it."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"not a message of the kind {kind.__name__}: {error}") from None


def source_uri(fleet: str, device: str) -> str:
    """The CloudEvents ``source`` of a device."""
    return f"/edged/{fleet}/{device}"


def rfc3339(wall_ns: int) -> str:
    """A wall clock time in nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=wall_ns // 1000)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
