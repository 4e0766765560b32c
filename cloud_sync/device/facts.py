"""What edged-sync tells about itself and the device: birth and will, info, health, alarms, its own status file.

Builds messages from values that it is given, and reads and writes two small status files. Sends nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from cloud_sync.contract.asyncapi import CHANNELS
from cloud_sync.contract.messages import (
    ALARM_TYPE,
    JSON_TYPE,
    Alarm,
    AlarmEvent,
    Health,
    Info,
    Presence,
    encode,
    rfc3339,
    source_uri,
)
from cloud_sync.contract.topics import Channel, DeviceTopics
from cloud_sync.device.link import Letter
from cloud_sync.device.uplink import Lane
from edged import __version__
from edged.status import LinkFacts, Status, StreamLinkFacts

Severity = Literal["warning", "critical"]
SAFE_MODE = "safe-mode"  # the state that stands in the daemon's status then (edged.safe_mode_page)
STATUS_MODE = 0o660  # as every file that the two services share through their group


def letter(channel: Channel, topic: str, payload: bytes) -> Letter:
    """A message with the quality of service that the contract gives its channel."""
    spoken = CHANNELS[channel]
    return Letter(topic, payload, spoken.content_type, spoken.qos, spoken.retain, spoken.expiry_s)


class Teller:
    """Builds the messages of one device; ``session`` changes with every connection, ``safe_mode`` with the daemon."""

    def __init__(self, topics: DeviceTopics) -> None:
        self.session = ""
        self.safe_mode = ""
        self._topics = topics

    def begin_session(self) -> Letter:
        """Start a new session; returns its last will."""
        self.session = str(uuid.uuid4())
        return self._presence("offline", "lost", None)

    def birth(self) -> Letter:
        """The device is there."""
        return self._presence("online", "connected", now())

    def farewell(self) -> Letter:
        """The device goes on purpose."""
        return self._presence("offline", "stopped", now())

    def info(self, daemon: Status | None) -> Letter:
        """What the device consists of."""
        info = Info(
            device=self._topics.device,
            session=self.session,
            version=daemon.version if daemon else __version__,
            machine=f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
            engines=daemon.engines if daemon else (),
            models=daemon.models if daemon else (),
        )
        return letter(Channel.INFO, self._topics.info, encode(info))

    def health(self, daemon: Status | None, link: LinkFacts) -> Letter:
        """How the device is; results travel on their own topic, so the latest ones are left out."""
        told = msgspec.structs.replace(daemon, latest=(), link=None) if daemon else None
        health = Health(device=self._topics.device, session=self.session, time=now(), link=link, daemon=told)
        return letter(Channel.HEALTH, self._topics.health, encode(health))

    def alarm(self, name: str, severity: Severity, message: str) -> Letter:
        """Something that a person should know."""
        device = self._topics.device
        event = AlarmEvent(
            specversion="1.0",
            id=str(uuid.uuid4()),
            source=source_uri(self._topics.fleet, device),
            type=ALARM_TYPE,
            subject=name,
            time=now(),
            datacontenttype=JSON_TYPE,
            data=Alarm(device=device, session=self.session, name=name, severity=severity, message=message),
        )
        return letter(Channel.EVENT, self._topics.event(name), encode(event))

    def _presence(
        self, state: Literal["online", "offline"], reason: Literal["connected", "stopped", "lost"], at: str | None
    ) -> Letter:
        presence = Presence(
            device=self._topics.device,
            session=self.session,
            state=state,
            reason=reason,
            version=__version__,
            time=at,
            safe_mode=self.safe_mode if state == "online" else "",
        )
        return letter(Channel.STATUS, self._topics.status, encode(presence))


class DaemonStatus:
    """The daemon's facts, read anew when their file was replaced; None while there are none that can be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self.facts: Status | None = None

    def refresh(self) -> bool:
        """Read the file if it is another one than before; returns whether it was."""
        before = self._seen
        try:
            stat = self._path.stat()
            if (stat.st_ino, stat.st_mtime_ns) != self._seen:
                self.facts = msgspec.json.decode(self._path.read_bytes(), type=Status)
                self._seen = (stat.st_ino, stat.st_mtime_ns)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            self.facts, self._seen = None, None
        return self._seen != before


def safe_mode(daemon: Status | None) -> str:
    """Why the daemon cannot run, as safe mode wrote in its place; empty while it does."""
    return "; ".join(daemon.reasons) if daemon is not None and daemon.state == SAFE_MODE else ""


def stream_facts(lanes: Sequence[Lane]) -> tuple[StreamLinkFacts, ...]:
    """The lanes as a person sees them."""
    return tuple(
        StreamLinkFacts(
            epoch=lane.key.epoch,
            stream=lane.key.stream,
            acked_seq=lane.acked,
            published_seq=lane.published,
            stored_seq=lane.stored,
            state=lane.state.value,
            reason=lane.reason,
        )
        for lane in lanes
    )


def write_status(path: Path, facts: LinkFacts) -> None:
    """Replace the status file atomically. Not fsynced: after a power cut it is written anew. Raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
        temporary.chmod(STATUS_MODE)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def now() -> str:
    """The wall clock as RFC 3339."""
    return rfc3339(time.time_ns())
