"""Settings of edged-sync: ``[sync]`` and what it needs of ``[device]``, from the file that the daemon reads too.

All errors at once, each with key, value and hint. What it does not know in ``[device]`` and every other section belongs
to the daemon and is passed over. Relative paths are relative to the file. Reads no environment and no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from edged.settings import InvalidSettings, Name, Problem, parse, read_toml

PORTS = {"mqtt": 1883, "mqtts": 8883}  # as registered with IANA


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What the two services of a device share."""

    id: Name
    state_dir: Path = Path("/var/lib/edged")
    runtime_dir: Path = Path("/run/edged")


class Sync(msgspec.Struct, frozen=True, kw_only=True):
    """The ``[sync]`` table. ``ack``: whose word lets a row go, the broker's PUBACK or the central database's ack."""

    broker: Annotated[str, msgspec.Meta(description="must be mqtt://host[:port] or mqtts://host[:port]")]
    root: Name = "edged"
    fleet: Name = "default"
    # More gains nothing: 16 to 22 thousand messages a second at 20, half of that at 1,000 (measured, QoS 1).
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=1000, description="must be 1 to 1000")] = 20
    keepalive_s: Annotated[int, msgspec.Meta(ge=1, le=3600, description="must be seconds, 1 to 3600")] = 30
    ack: Annotated[Literal["broker", "central"], msgspec.Meta(description="must be broker or central")] = "broker"
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str = ""
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything edged-sync is told, checked."""

    device: Device
    sync: Sync
    host: str
    port: int
    tls: bool

    @property
    def buffer_dir(self) -> Path:
        """The daemon's store of results."""
        return self.device.state_dir / "buffer"

    @property
    def own_dir(self) -> Path:
        """Where edged-sync keeps its cursor and its facts."""
        return self.device.state_dir / "sync"

    @property
    def daemon_status(self) -> Path:
        """The facts that the daemon writes."""
        return self.device.runtime_dir / "status.json"


def load(path: Path) -> Settings:
    """Read and validate a configuration file. Raises ConfigError (InvalidSettings holds all problems)."""
    return validate(read_toml(path), path.resolve().parent, str(path))


def validate(table: Mapping[str, Any], base: Path, where: str = "configuration") -> Settings:
    """Check a parsed file. Raises InvalidSettings with every problem."""
    problems: list[Problem] = []
    device = _device(table, problems)
    if "sync" not in table:
        problems.append(Problem("sync", msgspec.UNSET, "is missing: edged-sync needs a [sync] table with broker ="))
    sync = parse(Sync, table.get("sync", {}), problems, "sync") if "sync" in table else None
    host, port, tls = _broker(sync.broker, problems) if sync else ("", 0, False)
    if sync is not None:
        sync = _absolute(sync, base)
        problems += _cross_checks(sync, tls)
    if device is None or sync is None or problems:
        raise InvalidSettings(where, problems)
    device = _absolute(device, base)
    return Settings(device, sync, host, port, tls)


def _device(table: Mapping[str, Any], problems: list[Problem]) -> Device | None:
    own = table.get("device")
    if not isinstance(own, Mapping):
        problems.append(Problem("device", msgspec.UNSET if own is None else own, "must be a table with id ="))
        return None
    return parse(Device, {key: own[key] for key in own if key in Device.__struct_fields__}, problems, "device")


def _broker(url: str, problems: list[Problem]) -> tuple[str, int, bool]:
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), 0
    if (
        not (parts.scheme in PORTS and parts.hostname and port)
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
    ):
        problems.append(Problem("sync.broker", url, "must be mqtt://host[:port] or mqtts://host[:port]"))
    elif parts.username is not None or parts.password is not None:
        # The URL would show the password in every log line and in status.
        problems.append(Problem("sync.broker", "(holds a user)", "use sync.username and sync.password_file"))
    return parts.hostname or "", port, parts.scheme == "mqtts"


def _cross_checks(sync: Sync, tls: bool) -> list[Problem]:
    problems: list[Problem] = []
    for key in ("ca", "cert", "key", "password_file"):
        path = getattr(sync, key)
        if path is not None and not path.is_file():
            problems.append(Problem(f"sync.{key}", str(path), "no such file"))
        if path is not None and key != "password_file" and not tls:
            problems.append(Problem(f"sync.{key}", str(path), "is used with mqtts:// only"))
    if (sync.cert is None) != (sync.key is None):
        problems.append(Problem("sync.cert", str(sync.cert), "cert and key are used together"))
    if sync.password_file is not None and not sync.username:
        problems.append(Problem("sync.username", sync.username, "is missing: password_file goes with it"))
    return problems


def _absolute(table: Any, base: Path) -> Any:
    paths = {name: getattr(table, name) for name in table.__struct_fields__}
    return msgspec.structs.replace(table, **{name: base / p for name, p in paths.items() if isinstance(p, Path)})
