"""The protocol between the daemon and an engine's worker: packets, their legal order, and what is in them.

One packet of a SOCK_SEQPACKET socket is one message: a fixed header and a body. Control messages carry JSON; the hot
path (INFER, STEP, DONE) carries a few packed integers; tensors lie in the sealed memfd that LOAD brings (``layout``).
Whatever a peer sends is checked here before anybody uses it; WireError means that the peer is not one of ours.

Pure: no sockets, no clocks, no files. Standard library only, and Python 3.8, because workers import it. Never a pickle.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from edged.engines.layout import SLOTS, Layout, parse_layout
from edged.engines.wire_json import WireError, encode_object, get_count, get_numbers, get_text, get_value, parse_object

VERSIONS = (1, 1)  # the oldest and the newest protocol that this file speaks
GREETING_VERSION = 0  # HELLO, WELCOME and REFUSE never change, so that strangers can refuse each other by name
MAGIC = b"edgw"
HEADER = struct.Struct("<4sHHII")  # magic, protocol version, kind, call, length of the body
RUN = struct.Struct("<HH")  # INFER, STEP: slot, batch
DONE = struct.Struct("<Q")  # nanoseconds the engine ran
REFUSED = "refused"  # code of an ERROR: the engine can never run this model
MAX_PACKET = 128 * 1024  # LOAD with 600 tensors; fits a socket's default send buffer of 208 KiB


class Kind(enum.IntEnum):
    """What a packet is."""

    __hash__ = int.__hash__  # Enum's own is Python code, and ORDER is asked twice a call

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    LOAD = 4
    PROGRESS = 5
    LOADED = 6
    INFER = 7
    STEP = 8
    DONE = 9
    ERROR = 10
    PING = 11
    PONG = 12
    BYE = 13


class Exit(enum.IntEnum):
    """How a worker process ends by itself."""

    OK = 0  # BYE, or the daemon closed the socket
    USAGE = 2  # the command line
    FAILED = 70  # an error of the worker itself; the traceback is on stderr
    REFUSED = 71  # no common protocol version, or not the engine that was asked for
    GARBAGE = 72  # the daemon's side broke the protocol
    NO_ENGINE = 73  # the engine's package is missing or does not import
    LOAD_FAILED = 74  # the engine could not load the model; ERROR said why
    ORPHANED = 75  # the daemon was gone before the worker stood


class Side(enum.Enum):
    """Who sends."""

    __hash__ = object.__hash__  # as for Kind

    DAEMON = "daemon"
    WORKER = "worker"


class Phase(enum.Enum):
    """Where a conversation stands."""

    __hash__ = object.__hash__  # as for Kind

    NEW = "new"
    GREETED = "greeted"
    IDLE = "idle"
    LOADING = "loading"
    READY = "ready"
    CLOSED = "closed"


_D, _W = Side.DAEMON, Side.WORKER
ORDER = {
    (Phase.NEW, _W, Kind.HELLO): Phase.GREETED,
    (Phase.GREETED, _D, Kind.WELCOME): Phase.IDLE,
    (Phase.GREETED, _D, Kind.REFUSE): Phase.CLOSED,
    (Phase.IDLE, _W, Kind.REFUSE): Phase.CLOSED,
    (Phase.IDLE, _D, Kind.LOAD): Phase.LOADING,
    (Phase.IDLE, _D, Kind.BYE): Phase.CLOSED,
    (Phase.LOADING, _W, Kind.REFUSE): Phase.CLOSED,  # the answer to WELCOME may cross LOAD
    (Phase.LOADING, _W, Kind.PROGRESS): Phase.LOADING,
    (Phase.LOADING, _W, Kind.LOADED): Phase.READY,
    (Phase.LOADING, _W, Kind.ERROR): Phase.CLOSED,
    (Phase.LOADING, _D, Kind.BYE): Phase.CLOSED,
    (Phase.READY, _D, Kind.INFER): Phase.READY,
    (Phase.READY, _D, Kind.STEP): Phase.READY,
    (Phase.READY, _D, Kind.PING): Phase.READY,
    (Phase.READY, _W, Kind.DONE): Phase.READY,
    (Phase.READY, _W, Kind.ERROR): Phase.READY,
    (Phase.READY, _W, Kind.PONG): Phase.READY,
    (Phase.READY, _D, Kind.BYE): Phase.CLOSED,
}
_GREETINGS = frozenset({Kind.HELLO, Kind.WELCOME, Kind.REFUSE})


class Message(NamedTuple):
    """One packet, its header checked. ``call`` ties an answer to its question."""

    kind: Kind
    call: int
    body: bytes


class Conversation:
    """One connection as one side sees it: packs and unpacks, and holds both sides to the order of ``ORDER``."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.peer = Side.WORKER if side is Side.DAEMON else Side.DAEMON
        self.phase = Phase.NEW
        self.version = GREETING_VERSION

    def pack(self, kind: Kind, call: int = 0, body: bytes = b"") -> bytes:
        """The packet to send. Raises WireError if it may not be sent now, or is too long."""
        self._move(self.side, kind)
        if HEADER.size + len(body) > MAX_PACKET:
            raise WireError(f"{kind.name} is too long: {len(body)} bytes, at most {MAX_PACKET - HEADER.size}")
        version = GREETING_VERSION if kind in _GREETINGS else self.version
        return HEADER.pack(MAGIC, version, kind, call, len(body)) + body

    def unpack(self, packet: bytes | memoryview) -> Message:
        """The message in a received packet. Raises WireError for anything that is not one, or comes out of order."""
        if not HEADER.size <= len(packet) <= MAX_PACKET:
            raise WireError(f"a packet of {len(packet)} bytes")
        magic, version, number, call, length = HEADER.unpack_from(packet)
        if magic != MAGIC:
            raise WireError(f"a packet that begins with {bytes(magic)!r}")
        try:
            kind = Kind(number)
        except ValueError:
            raise WireError(f"a packet of the unknown kind {number}") from None
        if version != (GREETING_VERSION if kind in _GREETINGS else self.version):
            raise WireError(f"{kind.name} of protocol version {version}, not {self.version}")
        if length != len(packet) - HEADER.size:
            raise WireError(f"{kind.name} says {length} bytes and has {len(packet) - HEADER.size}")
        self._move(self.peer, kind)
        return Message(kind, call, bytes(packet[HEADER.size :]))

    def _move(self, sender: Side, kind: Kind) -> None:
        phase = ORDER.get((self.phase, sender, kind))
        if phase is None:
            raise WireError(f"{kind.name} from the {sender.value} while the conversation is {self.phase.value}")
        self.phase = phase


def diagram() -> str:
    """The order of a conversation as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.NEW.value}"]
    for (phase, sender, kind), to in ORDER.items():
        lines.append(f"    {phase.value} --> {to.value}: {kind.name} from the {sender.value}")
    return "\n".join(lines)


def common_version(theirs: tuple[int, int], ours: tuple[int, int] = VERSIONS) -> int | None:
    """The newest protocol version that both sides speak, None if there is none."""
    newest = min(theirs[1], ours[1])
    return newest if newest >= max(theirs[0], ours[0]) else None


class Hello(NamedTuple):
    """The worker's first word: which protocols it speaks and what it is."""

    protocol: tuple[int, int]
    engine: str
    engine_version: str
    python: str
    pid: int

    @classmethod
    def parse(cls, body: bytes) -> Hello:
        """Raises WireError."""
        table = parse_object(body)
        protocol = get_value(table, "protocol", list)
        if len(protocol) != 2 or not all(type(v) is int and 0 < v < 1 << 16 for v in protocol):
            raise WireError(f"protocol is not a range of versions: {protocol!r}")
        words = [get_text(table, name) for name in ("engine", "engine_version", "python")]
        return cls((protocol[0], protocol[1]), words[0], words[1], words[2], get_count(table, "pid"))


class Welcome(NamedTuple):
    """The daemon's answer: the protocol version to speak from here on."""

    protocol: int

    @classmethod
    def parse(cls, body: bytes) -> Welcome:
        """Raises WireError."""
        return cls(get_count(parse_object(body), "protocol"))


class Refuse(NamedTuple):
    """Either side: this peer cannot be talked to, and why."""

    reason: str

    @classmethod
    def parse(cls, body: bytes) -> Refuse:
        """Raises WireError."""
        return cls(get_text(parse_object(body), "reason"))


class Progress(NamedTuple):
    """What a loading worker does now."""

    stage: str

    @classmethod
    def parse(cls, body: bytes) -> Progress:
        """Raises WireError."""
        return cls(get_text(parse_object(body), "stage"))


class Loaded(NamedTuple):
    """The model stands. ``plan`` is the form that was chosen, ``timings`` are seconds or microseconds by their name."""

    plan: str
    timings: dict[str, float]

    @classmethod
    def parse(cls, body: bytes) -> Loaded:
        """Raises WireError."""
        table = parse_object(body)
        return cls(get_text(table, "plan"), get_numbers(table, "timings"))


class Error(NamedTuple):
    """A call or a load failed. ``about`` is ``frame`` (the engine still stands) or ``engine`` (it does not)."""

    code: str
    message: str
    about: str

    @classmethod
    def parse(cls, body: bytes) -> Error:
        """Raises WireError."""
        table = parse_object(body)
        about = get_text(table, "about")
        if about not in ("frame", "engine"):
            raise WireError(f"an error about {about!r}")
        return cls(get_text(table, "code"), get_text(table, "message"), about)


class Load(NamedTuple):
    """What the worker is to load. Paths are absolute; the memfd comes beside this message, as its one descriptor."""

    model: str  # name@version
    digest: str  # of the bundle: part of every cache key
    bundle_dir: str
    plan_dir: str
    cache_dir: str
    deadline_s: float
    layout: Layout

    def encode(self) -> bytes:
        """As a body."""
        return encode_object(dict(self._asdict(), layout=self.layout.table()))

    @classmethod
    def parse(cls, body: bytes) -> Load:
        """Raises WireError."""
        table = parse_object(body)
        words = [get_text(table, name) for name in ("model", "digest", "bundle_dir", "plan_dir", "cache_dir")]
        deadline = table.get("deadline_s")
        if not isinstance(deadline, (int, float)) or not 0 < deadline < 1 << 31:
            raise WireError(f"deadline_s is {deadline!r}")
        layout = parse_layout(get_value(table, "layout", dict))
        return cls(words[0], words[1], words[2], words[3], words[4], float(deadline), layout)


class Gpu(NamedTuple):
    """The body of a PONG of a worker that computes on a GPU; all others leave it empty.

    ``id`` is the GPU's place on the bus, empty where it is part of the machine's chip. ``figures`` are load_percent,
    memory_used_bytes, memory_total_bytes and temperature_c, as far as they are known.
    """

    id: str
    name: str
    figures: dict[str, float]

    @classmethod
    def parse(cls, body: bytes) -> Gpu:
        """Raises WireError."""
        table = parse_object(body)
        return cls(get_text(table, "id"), get_text(table, "name"), get_numbers(table, "figures"))


def parse_run(body: bytes, layout: Layout) -> tuple[int, int]:
    """Slot and batch of INFER or STEP. Raises WireError."""
    if len(body) != RUN.size:
        raise WireError(f"a call of {len(body)} bytes")
    slot, batch = RUN.unpack(body)
    if slot >= SLOTS or not 1 <= batch <= layout.max_batch:
        raise WireError(f"slot {slot}, batch {batch}")
    return slot, batch


def parse_done(body: bytes) -> int:
    """Nanoseconds the engine ran. Raises WireError."""
    if len(body) != DONE.size:
        raise WireError(f"DONE of {len(body)} bytes")
    return int(DONE.unpack(body)[0])
