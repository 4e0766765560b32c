"""The daemon as a feeder sees it: Open Inference Protocol v2 over the Unix socket (docs/feeders.md).

One connection, kept open, for one thread. An answer comes after the commit; ``Away`` means that nobody knows whether
the frame was stored, and that it may be handed in again with the same key. Does not wait and does not repeat.
"""

from __future__ import annotations

import http.client
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged import unix_socket
from edged.errors import EdgedError

T = TypeVar("T")
ANSWER_S = 60.0  # a full queue that blocks holds a frame back; after this it is handed in again
MAX_KEY = 200  # characters, as docs/http.md says
UNSURE = (500, 502, 504)  # the daemon failed; unless it says that the frame is stored, that may have been for once


@dataclass(frozen=True, slots=True)
class Content:
    """One frame as it travels: the bytes of a file, and its format (npy, png, dat …)."""

    format: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Handed:
    """The frame has a stored result. ``duplicate``: it had one before."""

    label: str
    seq: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The frame will never have a result. ``is_stored``: the stream says so too."""

    reason: str
    is_stored: bool


@dataclass(frozen=True, slots=True)
class EventRule:
    """How the model bins events: a window has ``window_us``, counted as ``t0`` says (first_event or recording)."""

    window_us: int
    t0: str


@dataclass(frozen=True, slots=True)
class Model:
    """What a feeder needs to know of its model. ``events`` is None where it takes no recordings."""

    name: str
    input: str
    shape: tuple[int, ...]
    events: EventRule | None


class Away(EdgedError):
    """The daemon did not take the frame: it is away, busy, or its pipeline is not open. Hand it in again."""

    code = "away"


class Broken(Away):
    """The daemon failed at this very frame; it may again."""

    code = "broken"


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    inputs: tuple[_Input, ...]
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct, frozen=True):
    name: str
    data: list[Any]


class _Where(msgspec.Struct, frozen=True):
    seq: int
    duplicate: bool


class _Answer(msgspec.Struct, frozen=True):
    parameters: _Where
    outputs: tuple[_Output, ...]


class _Error(msgspec.Struct, frozen=True):
    error: str = ""
    stored: dict[str, Any] | None = None


class Daemon:
    """The daemon that listens at ``socket_path``, asked for one model."""

    def __init__(self, socket_path: Path, model: str) -> None:
        self._path = socket_path
        self._name = model
        self._connection: _Connection | None = None
        self._input = ""

    def model(self) -> Model:
        """What the model takes. Raises Away."""
        status, body = self._ask("GET", f"/v2/models/{self._name}", None, {})
        if status != 200:
            raise Away(f"the daemon does not serve model {self._name}: {_error(body).error or status}")
        told = _decoded(body, _Metadata)
        self._input = told.inputs[0].name
        return Model(told.name, self._input, told.inputs[0].shape[1:], _event_rule(told.parameters))

    def hand(self, key: str, content: Content) -> Handed | Refused:
        """Hand one frame in and wait for its end. Raises Away (Broken where the daemon failed at it)."""
        if not self._input:
            self.model()
        binary = struct.pack("<I", len(content.data)) + content.data
        head = msgspec.json.encode(
            {
                "id": key,
                "inputs": [
                    {
                        "name": self._input,
                        "shape": [1],
                        "datatype": "BYTES",
                        "parameters": {"content_type": content.format, "binary_data_size": len(binary)},
                    }
                ],
                "outputs": [{"name": "label"}],
            }
        )
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        status, body = self._ask("POST", f"/v2/models/{self._name}/infer", head + binary, headers)
        return _outcome(status, body)

    def close(self) -> None:
        """Give the connection back; the next call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body of an answer. A connection that the daemon closed for being quiet is made anew, once."""
        for is_last in (self._connection is None, True):
            if self._connection is None:
                self._connection = _Connection(self._path)
            try:
                self._connection.request(method, path, body, headers)
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (http.client.HTTPException, OSError) as error:
                self.close()
                if is_last or isinstance(error, TimeoutError):
                    raise Away(f"the daemon does not answer at {self._path}: {error or type(error).__name__}") from None
        raise AssertionError("the loop returns or raises")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        unix_socket.connect(self.sock, self._path)


def _outcome(status: int, body: bytes) -> Handed | Refused:
    if status == 200:
        answer = _decoded(body, _Answer)
        return Handed(str(answer.outputs[0].data[0]), answer.parameters.seq, answer.parameters.duplicate)
    told = _error(body)
    reason = told.error or f"status {status}"
    if told.stored is not None:
        return Refused(reason, is_stored=True)
    if status in (400, 413):
        return Refused(reason, is_stored=False)
    raise (Broken if status in UNSURE else Away)(reason)


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Broken(f"the daemon's answer is not understood: {error}", "are both of one version?") from None


def _error(body: bytes) -> _Error:
    try:
        return msgspec.json.decode(body, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Error(body[:200].decode("utf-8", "replace"))


def _event_rule(told: dict[str, Any]) -> EventRule | None:
    if "events_dt_us" not in told:
        return None
    return EventRule(int(told["events_dt_us"]) * int(told["timesteps"]), str(told["events_t0"]))
