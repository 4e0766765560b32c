"""The daemon's configuration: read once, validated whole, then immutable.

One TOML file serves both services on a device; ``[sync]`` belongs to edged-sync and is passed over here. Relative paths
are relative to the file. Reads no environment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from edged.domain import Policy
from edged.feeder_config import FeederConfig
from edged.hardware_config import Board, Pressure
from edged.settings import NAME, InvalidSettings, Name, Problem, parse, read_toml

EngineName = Literal[
    "onnxruntime", "tensorrt", "tensorrt-fp16", "tensorrt-int8", "tensorrt-rtx", "lava", "lava-fixed", "lava-sim",
    "lava-loihi2"
]  # fmt: skip
ENGINES: tuple[str, ...] = get_args(EngineName)
CameraFormat = Literal["auto", "RGB3", "BGR3", "YUYV", "YVYU", "UYVY", "VYUY", "NV12", "NV21", "YU12", "YV12", "MJPEG",
                       "GREY", "Y16"]  # fmt: skip
SampleType = Literal["s16le", "s16be", "s32le", "s32be", "f32le"]
# Speeds that every serial driver of Linux knows by name (termios(3)).
BAUDS = (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800, 500000, 576000, 921600, 1000000, 1152000,
         1500000, 2000000, 2500000, 3000000, 3500000, 4000000)  # fmt: skip
Finding = tuple[str, object, str]  # field, value, hint
Positive = Annotated[int, msgspec.Meta(ge=1, description="must be a whole number, at least 1")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400, description="must be seconds, more than 0")]


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this device is and where it keeps its state."""

    id: Name
    state_dir: Path = Path("/var/lib/edged")
    runtime_dir: Path = Path("/run/edged")

    @property
    def buffer_dir(self) -> Path:
        """Where the results lie; edged-sync reads there."""
        return self.state_dir / "buffer"

    @property
    def sync_dir(self) -> Path:
        """Where edged-sync leaves its ack cursor and its status; the daemon reads there."""
        return self.state_dir / "sync"

    @property
    def incoming_dir(self) -> Path:
        """Where edged-sync and commands leave packed bundles; the daemon takes them from there and verifies them."""
        return self.sync_dir / "incoming"

    @property
    def models_dir(self) -> Path:
        """The installed models; the daemon alone writes there."""
        return self.state_dir / "models"

    @property
    def cache_dir(self) -> Path:
        """Plans that engines derived; workers write there too, and nothing in it is needed."""
        return self.state_dir / "cache"

    @property
    def hosts_dir(self) -> Path:
        """The sockets behind which systemd starts workers, where it does."""
        return self.runtime_dir / "worker"

    @property
    def trust_dir(self) -> Path:
        """Public keys (*.pem) whose owners may sign models for this device."""
        return self.state_dir / "trust"


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

    def check(self) -> Iterator[Finding]:
        """The cap must leave room to seal one segment while another fills."""
        if self.cap_mb < 4 * self.segment_mb:
            yield "cap_mb", self.cap_mb, "must hold at least 4 segments of segment_mb"


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """Installed models: whom to trust, and what a model on trial has to show before it is committed."""

    trusted_keys: tuple[Path, ...] = ()
    allow_unsigned: bool = False  # for development
    trial_results: Annotated[int, msgspec.Meta(ge=0, description="must be results, at least 0")] = 10
    trial_s: Annotated[float, msgspec.Meta(ge=0, le=86400, description="must be seconds, at least 0")] = 60.0


class SpoolSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="spool"):
    """A directory into which somebody moves finished files: .npy, .png, .jpg, .bs2, .bin, .dat, .aedat."""

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

    def check(self) -> Iterator[Finding]:
        """What is to be played must be there."""
        if not self.path.exists():
            yield "path", str(self.path), "no such file or directory"


class SerialWindowsSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="serial-windows"):
    """Windows of a sensor's samples from a serial line, a FIFO or an IIO buffer (``edged.sources.sample_stream``).

    A window has the shape (channels, window); samples are multiplied by ``scale``. ``baud`` is for serial lines only.
    """

    name: Name
    path: Path
    sample: Annotated[SampleType, msgspec.Meta(description=f"must be {', '.join(get_args(SampleType))}")]
    window: Annotated[int, msgspec.Meta(ge=1, le=1 << 20, description="must be samples, 1 to 1048576")]
    hop: Annotated[int, msgspec.Meta(ge=0, description="must be samples, at most window; 0: as many as window")] = 0
    channels: Annotated[int, msgspec.Meta(ge=1, le=64, description="must be 1 to 64")] = 1
    scale: float = 1.0
    framing: Annotated[Literal["blocks", "raw"], msgspec.Meta(description="must be blocks or raw")] = "blocks"
    baud: int = 115200

    def check(self) -> Iterator[Finding]:
        """Windows must not leave samples out, and the line must know its speed."""
        if self.hop > self.window:
            yield "hop", self.hop, "must be at most window: no sample is left out"
        if not math.isfinite(self.scale) or self.scale == 0:
            yield "scale", self.scale, "must be a number other than 0"
        if self.baud not in BAUDS:
            yield "baud", self.baud, f"must be one of {', '.join(map(str, BAUDS))}"


class CameraSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="camera"):
    """A V4L2 camera, of which the latest frame counts (``edged.sources.camera``).

    Without a size, or a rate in frames a second, it sends what it does by itself. A format is a V4L2 code.
    """

    name: Name
    device: Path
    width: Annotated[int, msgspec.Meta(ge=0, le=16384, description="must be pixels, at most 16384")] = 0
    height: Annotated[int, msgspec.Meta(ge=0, le=16384, description="must be pixels, at most 16384")] = 0
    format: Annotated[CameraFormat, msgspec.Meta(description=f"must be {', '.join(get_args(CameraFormat))}")] = "auto"
    rate: Annotated[float, msgspec.Meta(ge=0, le=1000, description="must be frames a second, 0 to 1000")] = 0.0

    def check(self) -> Iterator[Finding]:
        """Half a size is none."""
        if bool(self.width) != bool(self.height):
            missing = "height" if self.width else "width"
            yield missing, 0, "is missing: a size has both width and height; without both it is the camera's own"


SourceConfig = SpoolSource | HttpSource | ReplaySource | SerialWindowsSource | CameraSource


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """Sources → model → stream of results. ``policy`` says what a full queue does.

    ``model`` is the name of an installed model (``digits``), or with a / in it a bundle directory (``./digits``).
    """

    name: Name
    model: Annotated[str, msgspec.Meta(min_length=1, description="must be an installed model or a bundle directory")]
    engines: tuple[EngineName, ...] = ("onnxruntime",)  # best first
    placement: Annotated[Literal["order", "fastest"], msgspec.Meta(description="must be order or fastest")] = "order"
    standby: bool = False  # keep the next best engine running: it takes over at once, and costs its memory
    queue: Positive = 64
    policy: Annotated[Policy, msgspec.Meta(description="must be block, drop-oldest or drop-newest")] = Policy.BLOCK
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=64, description="must be 1 to 64")] = 8
    priority: Annotated[int, msgspec.Meta(ge=0, le=9, description="must be 0 (shed first) to 9 (kept longest)")] = 5
    source: Annotated[tuple[SourceConfig, ...], msgspec.Meta(description="at least one [[pipeline.source]]")]

    def check(self) -> Iterator[Finding]:
        """A pipeline needs a bundle and something that feeds it."""
        if not self.source:
            yield "source", [], "at least one [[pipeline.source]] is needed"
        if not self.engines:
            yield "engines", [], f"at least one of {', '.join(ENGINES)}"
        if len(set(self.engines)) < len(self.engines):
            yield "engines", list(self.engines), "names an engine twice; the order is the preference"
        if self.bundle_dir is None and not re.fullmatch(NAME, self.model):
            yield "model", self.model, "must be the name of an installed model, or a bundle directory with a / in it"
        if self.bundle_dir is not None and not (self.bundle_dir / "manifest.json").is_file():
            yield "model", self.model, "must be a bundle directory (it has no manifest.json)"

    @property
    def bundle_dir(self) -> Path | None:
        """The bundle directory that ``model`` names; None when it names an installed model."""
        return Path(self.model) if "/" in self.model else None


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine's worker is run. ``python`` is its interpreter; empty: the daemon's own.

    ``device``: the engine is here only while this device is: a kind, short name, link or node of ``edged devices``.
    """

    python: str = ""
    deadline_s: Seconds = 5.0
    load_deadline_s: Seconds = 60.0
    memory_mb: Positive = 1024  # a worker that holds more is ended; a spiking model on a CPU takes a tenth of it
    device: Annotated[str, msgspec.Meta(pattern=r"^[^\s]*\Z", description="must be a device of edged devices")] = ""
    recycle_calls: Annotated[int, msgspec.Meta(ge=0, description="must be 0 (never) or more")] = 0


class Engines(msgspec.Struct, frozen=True, kw_only=True):
    """One table for each package; the engines of one package (``lava``, ``lava-sim``) share its table."""

    onnxruntime: Worker = Worker()
    # A first build takes minutes on a Jetson (9.5 were seen on an Orin); the libraries alone hold half a gigabyte.
    tensorrt: Worker = Worker(load_deadline_s=1800.0, memory_mb=4096)
    lava: Worker = Worker(deadline_s=10.0, recycle_calls=1_000_000)

    def worker(self, engine: str) -> Worker:
        """The table of an engine."""
        table: Worker = getattr(self, engine.partition("-")[0])
        return table

    def device(self, engine: str) -> str:
        """The device that an engine needs, empty for none. Of Lava's engines only that for the chip needs one."""
        on_device = not engine.startswith("lava") or engine == "lava-loihi2"
        return self.worker(engine).device if on_device else ""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration of the daemon."""

    device: Device
    http: Http = Http()
    buffer: Buffer = Buffer()
    models: Models = Models()
    engines: Engines = Engines()
    pressure: Pressure = Pressure()
    board: tuple[Board, ...] = ()
    pipeline: Annotated[tuple[Pipeline, ...], msgspec.Meta(description="at least one [[pipeline]]")]
    feeder: tuple[FeederConfig, ...] = ()  # processes of their own; the daemon only checks what is said of them

    def check(self) -> Iterator[Finding]:
        """A daemon without a pipeline would only look alive."""
        if not self.pipeline:
            yield "pipeline", [], "at least one [[pipeline]] is needed"

    @property
    def installed_models(self) -> dict[str, tuple[str, ...]]:
        """The installed models that pipelines name, with the names of those pipelines."""
        named = [one for one in self.pipeline if one.bundle_dir is None]
        return {one.model: tuple(other.name for other in named if other.model == one.model) for one in named}


OTHER_SERVICES = ("sync",)


def load(path: Path) -> Config:
    """Read and validate a configuration file. Raises ConfigError (InvalidSettings holds all problems)."""
    return validate(read_toml(path), path.resolve().parent, str(path))


def validate(table: dict[str, Any], base: Path, where: str = "configuration") -> Config:
    """Check a parsed table; paths become absolute, relative to ``base``. Raises InvalidSettings with every problem."""
    problems: list[Problem] = []
    own = {key: value for key, value in table.items() if key not in OTHER_SERVICES}
    if "pipeline" in own:
        own["pipeline"] = _absolute_models(own["pipeline"], base)
    config = parse(Config, own, problems, base=base)
    problems += _repeated_names(table)
    if config is None or problems:
        raise InvalidSettings(where, problems)
    return config


def _repeated_names(table: dict[str, Any]) -> list[Problem]:
    """Looked up in the raw table, so that they are told together with everything else."""
    pipelines = [one for one in _tables(table.get("pipeline")) if isinstance(one, dict)]
    sources = [source for pipeline in pipelines for source in _tables(pipeline.get("source"))]
    problems: list[Problem] = []
    feeders, boards = _tables(table.get("feeder")), _tables(table.get("board"))
    for key, tables in (("pipeline", pipelines), ("pipeline.source", sources), ("feeder", feeders), ("board", boards)):
        names = [str(one["name"]) for one in tables if isinstance(one, dict) and "name" in one]
        repeated = sorted({name for name in names if names.count(name) > 1})
        problems += [Problem(f"{key}.name", name, "is used twice; every name must be its own") for name in repeated]
    return problems


def _absolute_models(pipelines: object, base: Path) -> object:
    """The pipelines with their bundle directories made absolute; anything else is left for the schema to refuse."""

    def absolute(pipeline: object) -> object:
        model = pipeline.get("model") if isinstance(pipeline, dict) else None
        if not isinstance(pipeline, dict) or not isinstance(model, str) or "/" not in model:
            return pipeline
        return {**pipeline, "model": str(base / model)}

    return [absolute(one) for one in pipelines] if isinstance(pipelines, list) else pipelines


def _tables(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def slug(text: str) -> str:
    """A legal Name made from any text, such as a host name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:64] or "device"
