"""Builds and parses the topics of a device: ``<root>/v1/<fleet>/<device>/<kind>[/<name>]``.

Every name is one level of a topic, so nobody can subscribe or publish wider by choosing a name: ``/``, ``+``, ``#``,
control characters and empty names are refused, and so is a leading ``$``, which brokers keep for themselves.
Pure: knows nothing of brokers, clients or payloads.
"""

from __future__ import annotations

import enum
import unicodedata
from dataclasses import dataclass

from edged.errors import EdgedError

VERSION = "v1"
# MQTT counts a topic in 16 bits; six names of this size stay far below, and logs and file names stay readable.
NAME_LIMIT_BYTES = 255
SHORTEST = 5  # levels: root, version, fleet, device, channel


class ContractError(EdgedError):
    """A topic or a message does not follow the contract. It was not acted upon."""

    code = "contract"


class Channel(enum.Enum):
    """What follows ``<root>/v1/<fleet>/<device>/``."""

    STATUS = "status"
    INFO = "info"
    RESULT = "result"
    EVENT = "event"
    HEALTH = "health"
    ACK = "ack"


NAMED = frozenset({Channel.RESULT, Channel.EVENT})  # these are followed by the name of a stream or of an alarm


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed topic. ``name`` is the stream of a result, the type of an event, else empty."""

    root: str
    fleet: str
    device: str
    channel: Channel
    name: str = ""


@dataclass(frozen=True, slots=True)
class DeviceTopics:
    """The topics of one device. Raises ContractError for a name that is not one topic level."""

    root: str
    fleet: str
    device: str

    def __post_init__(self) -> None:
        for what in ("root", "fleet", "device"):
            check_name(what, getattr(self, what))

    @property
    def status(self) -> str:
        """Birth and last will, retained."""
        return self._topic(Channel.STATUS)

    @property
    def info(self) -> str:
        """What the device consists of, retained."""
        return self._topic(Channel.INFO)

    @property
    def health(self) -> str:
        """How the device is."""
        return self._topic(Channel.HEALTH)

    @property
    def ack(self) -> str:
        """What the central database holds; the only topic here that the device subscribes to."""
        return self._topic(Channel.ACK)

    def result(self, stream: str) -> str:
        """The results of one stream."""
        return f"{self._topic(Channel.RESULT)}/{check_name('stream', stream)}"

    def event(self, name: str) -> str:
        """Alarms of one type."""
        return f"{self._topic(Channel.EVENT)}/{check_name('event', name)}"

    def _topic(self, channel: Channel) -> str:
        return f"{self.root}/{VERSION}/{self.fleet}/{self.device}/{channel.value}"


def parse(topic: str) -> Address:
    """Take a topic apart. Raises ContractError when it is not a topic of this contract."""
    levels = topic.split("/")
    if len(levels) < SHORTEST:
        raise ContractError(f"topic {topic!r} is not <root>/{VERSION}/<fleet>/<device>/…")
    root, version, fleet, device, channel_name, *rest = levels
    for what, name in (("root", root), ("fleet", fleet), ("device", device)):
        check_name(what, name)
    if version != VERSION:
        raise ContractError(f"topic {topic!r}: version {version!r} is not {VERSION!r}")
    channel = next((channel for channel in Channel if channel.value == channel_name), None)
    if channel is None:
        raise ContractError(f"topic {topic!r}: {channel_name!r} is none of {', '.join(c.value for c in Channel)}")
    if len(rest) != (channel in NAMED):
        raise ContractError(f"topic {topic!r}: {channel.value} takes {'one name' if channel in NAMED else 'no name'}")
    return Address(root, fleet, device, channel, check_name("name", rest[0]) if rest else "")


def check_name(what: str, name: str) -> str:
    """Return ``name`` if it is one whole topic level. Raises ContractError saying ``what`` is wrong with it."""
    problem = _problem(name)
    if problem:
        raise ContractError(f"{what} {name!r} {problem}", "a name is one level of an MQTT topic")
    return name


def _problem(name: str) -> str:
    if not name:
        return "is empty"
    if any(character in "/+#" for character in name):
        return "holds '/', '+' or '#'"
    if name.startswith("$"):
        return "begins with '$', which belongs to the broker"
    # Cc: control characters; Cs: lone surrogates, which UTF-8 cannot carry; Cn: noncharacters, which MQTT forbids.
    if any(unicodedata.category(character) in {"Cc", "Cs", "Cn"} for character in name):
        return "holds a character that MQTT does not allow"
    if len(name.encode()) > NAME_LIMIT_BYTES:
        return f"is longer than {NAME_LIMIT_BYTES} bytes"
    return ""
