"""The settings of feeders: ``[[feeder]]``, one table a process that hands frames to the daemon.

Part of the daemon's configuration, so that ``edged check`` sees all of a device at once; ``edged-feed`` reads them.
Credentials stand in a file or in the environment, never in an address: addresses are logged. Whether files are there is
seen by the feeder, whose user may read more than the daemon's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from edged.settings import Name

Finding = tuple[str, object, str]  # field, value, hint
RecordingFormat = Literal["", "bs2", "dat", "aedat"]
PORTS = {"mqtt": 1883, "mqtts": 8883, "rtsp": 554, "rtsps": 322}  # as registered with IANA
STDIN = "-"
MOST_SIDE = 8192  # pixels; a decoder that is told more would take the memory first


class EventsFeeder(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="events"):
    """Recordings of an event camera (a file or a directory of them), or its live bytes (``-``, a FIFO, a serial line).

    ``format`` makes it live bytes, whose name says nothing; recordings are known by their suffix. ``cut``: windows as
    the model's manifest says, one frame each; otherwise a recording is one frame, and live bytes are always cut.
    ``speed``: 1 is real time, 0 as fast as the daemon takes it. ``keep``: what becomes of windows while the daemon is
    slower. ``quiet_s``: without bytes for so long, a window has ended.
    """

    name: Name
    model: Name
    path: Path
    format: Annotated[RecordingFormat, msgspec.Meta(description="must be bs2, dat or aedat")] = ""
    cut: bool = False
    speed: Annotated[float, msgspec.Meta(ge=0, le=1000, description="must be 0 (unlimited) to 1000")] = 0.0
    keep: Annotated[Literal["", "all", "latest"], msgspec.Meta(description="must be all or latest")] = ""
    baud: Annotated[int, msgspec.Meta(ge=1200, le=4_000_000, description="must be a serial line's speed")] = 115200
    quiet_s: Annotated[float, msgspec.Meta(gt=0, le=3600, description="must be seconds, more than 0")] = 0.5

    def check(self) -> Iterator[Finding]:
        """Live bytes do not say what they are."""
        if self.path.name == STDIN and not self.format:
            yield "format", self.format, "is missing: live bytes are bs2, dat or aedat"
        if self.format and self.speed:
            yield "speed", self.speed, "is for recordings: live bytes come when they come"

    @property
    def is_live(self) -> bool:
        """Whether the path is a stream of bytes, not of files."""
        return bool(self.format)


class MqttTopic(msgspec.Struct, frozen=True, kw_only=True):
    """What arrives on the topics of a filter, and what makes a message the same frame when it comes again.

    ``values``: the member of a JSON object that holds the numbers; empty: the payload is the array itself.
    ``shape``: of flat numbers and of raw ones; empty: that of the model's input.
    """

    filter: Annotated[str, msgspec.Meta(min_length=1, max_length=1000, description="must be a topic filter of MQTT")]
    payload: Annotated[
        Literal["json", "raw", "npy", "png", "jpg", "bs2", "dat", "aedat"],
        msgspec.Meta(description="must be json, raw, npy, png, jpg, bs2, dat or aedat"),
    ]
    key: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(digest|each|(field|property):[^\s#]{1,64})\Z",
            description="must be property:NAME, field:NAME, digest or each (docs/feeders.md says which is safe)",
        ),
    ]
    values: str = ""
    dtype: Annotated[
        Literal["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"],
        msgspec.Meta(description="must be uint8, int8, uint16, int16, int32, float32 or float64"),
    ] = "float32"
    shape: tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 24)], ...] = ()

    def check(self) -> Iterator[Finding]:
        """Fields are looked up in JSON objects only, and wildcards stand alone in their level."""
        if self.payload != "json" and (self.values or self.key.startswith("field:")):
            yield "key" if self.key.startswith("field:") else "values", self.key, 'is for payload = "json" only'
        levels = self.filter.split("/")
        lone = all(level in ("+", "#") or not {"+", "#"} & set(level) for level in levels)
        if not lone or "#" in levels[:-1] or "\0" in self.filter:
            yield "filter", self.filter, "must be a topic filter of MQTT: + is a whole level, # the whole last one"


class MqttFeeder(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="mqtt"):
    """Messages of a broker (MQTT 5, QoS 1). ``session_hours``: how long the broker keeps what comes while we are away.

    ``in_flight``: messages that are with us and not acknowledged yet, at most.
    """

    name: Name
    model: Name
    broker: str
    topic: Annotated[tuple[MqttTopic, ...], msgspec.Meta(description="at least one [[feeder.topic]]")]
    client_id: Annotated[str, msgspec.Meta(max_length=64, description="must have 64 characters at most")] = ""
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=64, description="must be 1 to 64")] = 8
    session_hours: Annotated[float, msgspec.Meta(ge=0, le=10_000, description="must be hours, 0 to 10000")] = 168.0
    keepalive_s: Annotated[int, msgspec.Meta(ge=1, le=3600, description="must be seconds, 1 to 3600")] = 30
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str = ""
    password_file: Path | None = None
    password_env: str = ""

    def check(self) -> Iterator[Finding]:
        """The broker's address, and files that are there."""
        yield from _address("broker", self.broker, ("mqtt", "mqtts"), path=False)
        yield from _credentials(self.username, self.password_file, self.password_env)
        for name, file in (("ca", self.ca), ("cert", self.cert), ("key", self.key)):
            if file is not None and not self.broker.startswith("mqtts://"):
                yield name, str(file), "is used with mqtts:// only"
        if (self.cert is None) != (self.key is None):
            yield "cert", str(self.cert), "cert and key are used together"
        if not self.topic:
            yield "topic", [], "at least one [[feeder.topic]] is needed"


class RtspFeeder(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="rtsp"):
    """A camera by RTSP. ``rate_hz``: frames a second to hand over at most, 0: all.

    ``width`` and ``height``: the decoder scales to this, 0: as the camera sends. ``timeout_s``: without a picture for
    so long, the connection is made anew.
    """

    name: Name
    model: Name
    url: str
    username: str = ""
    password_file: Path | None = None
    password_env: str = ""
    transport: Annotated[Literal["tcp", "udp"], msgspec.Meta(description="must be tcp or udp")] = "tcp"
    rate_hz: Annotated[float, msgspec.Meta(ge=0, le=1000, description="must be frames a second, 0 (all) to 1000")] = 0.0
    pixels: Annotated[Literal["rgb", "gray"], msgspec.Meta(description="must be rgb or gray")] = "rgb"
    width: Annotated[int, msgspec.Meta(ge=0, le=MOST_SIDE, description=f"must be pixels, 0 to {MOST_SIDE}")] = 0
    height: Annotated[int, msgspec.Meta(ge=0, le=MOST_SIDE, description=f"must be pixels, 0 to {MOST_SIDE}")] = 0
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600, description="must be seconds, more than 0")] = 10.0

    def check(self) -> Iterator[Finding]:
        """The camera's address, and both sides of a size."""
        yield from _address("url", self.url, ("rtsp", "rtsps"), path=True)
        yield from _credentials(self.username, self.password_file, self.password_env)
        if (self.width == 0) != (self.height == 0):
            yield "width", self.width, "width and height are set together"


FeederConfig = EventsFeeder | MqttFeeder | RtspFeeder


def address(url: str) -> SplitResult:
    """The parts of an address that was checked. Its ``port`` may be None: ``PORTS`` has the usual ones."""
    return urlsplit(url)


def _address(field: str, url: str, schemes: tuple[str, ...], *, path: bool) -> Iterator[Finding]:
    form = " or ".join(f"{scheme}://host[:port]{'/path' if path else ''}" for scheme in schemes)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, usable = SplitResult("", "", "", "", ""), False
    if "@" in parts.netloc or ("@" in url and not usable):
        yield field, "(holds a user)", "use username, and password_file or password_env: addresses are logged"
    elif not usable or (not path and (parts.path.strip("/") or parts.query)) or parts.fragment:
        yield field, url.partition("?")[0], f"must be {form}"


def _credentials(username: str, file: Path | None, variable: str) -> Iterator[Finding]:
    if file is not None and variable:
        yield "password_env", variable, "password_file is set too; use one of the two"
    if (file is not None or variable) and not username:
        yield "username", username, "is missing: a password goes with it"
