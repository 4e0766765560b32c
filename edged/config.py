"""The daemon's configuration: read once, validated whole, then immutable.

One TOML file serves both services on a device; ``[sync]`` belongs to edged-sync and is passed over here. Relative paths
are relative to the file. Reads no environment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec

from edged.settings import InvalidSettings, Problem, parse, read_toml

Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
        description="must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    ),
]
Positive = Annotated[int, msgspec.Meta(ge=1, description="must be a whole number, at least 1")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400, description="must be seconds, more than 0")]


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this device is and where it keeps its state."""

    id: Name
    state_dir: Path = Path("/var/lib/edged")
    runtime_dir: Path = Path("/run/edged")


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """The console. Port 0 takes a free one (written to ``<runtime_dir>/http.json``)."""

    host: Annotated[str, msgspec.Meta(pattern=r"^(127\.\d+\.\d+\.\d+|::1|localhost)\Z",
                                      description="must be a loopback address")] = "127.0.0.1"  # fmt: skip
    port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="must be a port, 0 to 65535")] = 8080


class Buffer(msgspec.Struct, frozen=True, kw_only=True):
    """The store of results. ``frame_identity`` is off only in tests that show what it protects from."""

    cap_mb: Annotated[int, msgspec.Meta(ge=8, description="must be megabytes, at least 8")] = 1024
    segment_mb: Annotated[int, msgspec.Meta(ge=1, le=1024, description="must be megabytes, 1 to 1024")] = 16
    keep_hours: Annotated[float, msgspec.Meta(ge=0, description="must be hours, at least 0")] = 72.0
    frame_identity: bool = True


class SpoolSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="spool"):
    """A directory into which somebody moves finished files: .npy, .png, .bs2, .bin."""

    name: Name
    path: Path
    poll_s: Seconds = 0.2


class HttpSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="http"):
    """Frames by ``POST /v2/models/<model>/infer``."""

    name: Name


class ReplaySource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="replay"):
    """Plays the files of a directory, or the rows of one .npy, at a rate; like a camera, it does not wait."""

    name: Name
    path: Path
    rate_hz: Annotated[float, msgspec.Meta(gt=0, le=100000, description="must be frames a second, more than 0")]
    loop: bool = False


SourceConfig = SpoolSource | HttpSource | ReplaySource
Policy = Literal["block", "drop-oldest", "drop-newest"]


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """Sources → model → stream of results. ``policy`` says what a full queue does."""

    name: Name
    model: Path
    engines: tuple[Literal["onnxruntime"], ...] = ("onnxruntime",)
    queue: Positive = 64
    policy: Annotated[Policy, msgspec.Meta(description="must be block, drop-oldest or drop-newest")] = "block"
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=64, description="must be 1 to 64")] = 8
    priority: Annotated[int, msgspec.Meta(ge=0, le=9, description="must be 0 (shed first) to 9 (kept longest)")] = 5
    source: Annotated[tuple[SourceConfig, ...], msgspec.Meta(description="at least one [[pipeline.source]]")]


class OnnxRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """The ONNX Runtime worker. ``python`` is its interpreter; empty: the daemon's own."""

    python: str = ""
    deadline_s: Seconds = 5.0
    load_deadline_s: Seconds = 60.0


class Engines(msgspec.Struct, frozen=True, kw_only=True):
    """One table for each engine."""

    onnxruntime: OnnxRuntime = OnnxRuntime()


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration of the daemon."""

    device: Device
    http: Http = Http()
    buffer: Buffer = Buffer()
    engines: Engines = Engines()
    pipeline: Annotated[tuple[Pipeline, ...], msgspec.Meta(description="at least one [[pipeline]]")]


OTHER_SERVICES = ("sync",)


def load(path: Path) -> Config:
    """Read and validate a configuration file. Raises ConfigError (InvalidSettings holds all problems)."""
    return validate(read_toml(path), path.resolve().parent, str(path))


def validate(table: dict[str, Any], base: Path, where: str = "configuration") -> Config:
    """Check a parsed table; paths become absolute, relative to ``base``. Raises InvalidSettings with every problem."""
    problems: list[Problem] = []
    own = {key: value for key, value in table.items() if key not in OTHER_SERVICES}
    config = parse(Config, own, problems)
    if config is not None:
        config = cast("Config", _absolute(config, base))
        problems += _cross_checks(config)
    if config is None or problems:
        raise InvalidSettings(where, problems)
    return config


def _absolute(value: Any, base: Path) -> Any:
    if isinstance(value, Path):
        return base / value
    if isinstance(value, tuple):
        return tuple(_absolute(item, base) for item in value)
    if isinstance(value, msgspec.Struct):
        changes = {name: _absolute(getattr(value, name), base) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **changes)
    return value


def _cross_checks(config: Config) -> list[Problem]:
    problems: list[Problem] = []
    if not config.pipeline:
        problems.append(Problem("pipeline", [], "at least one [[pipeline]] is needed"))
    if config.buffer.cap_mb < 4 * config.buffer.segment_mb:
        problems.append(Problem("buffer.cap_mb", config.buffer.cap_mb, "must hold at least 4 segments of segment_mb"))
    problems += _repeated("pipeline", [pipeline.name for pipeline in config.pipeline])
    sources = [(f"pipeline[{i}].source", s) for i, p in enumerate(config.pipeline) for s in p.source]
    problems += _repeated("pipeline.source", [source.name for _, source in sources])
    for i, pipeline in enumerate(config.pipeline):
        if not pipeline.source:
            problems.append(Problem(f"pipeline[{i}].source", [], "at least one [[pipeline.source]] is needed"))
        if not (pipeline.model / "manifest.json").is_file():
            hint = "must be a bundle directory (it has no manifest.json); make one with: edged bundle"
            problems.append(Problem(f"pipeline[{i}].model", str(pipeline.model), hint))
    for key, source in sources:
        if isinstance(source, ReplaySource) and not source.path.exists():
            problems.append(Problem(f"{key}.path", str(source.path), "no such file or directory"))
    return problems


def _repeated(key: str, names: list[str]) -> list[Problem]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [Problem(f"{key}.name", name, "is used twice; every name must be its own") for name in repeated]


def slug(text: str) -> str:
    """A legal Name made from any text, such as a host name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:64] or "device"
