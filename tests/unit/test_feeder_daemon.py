"""What a feeder makes of the daemon's answers, and of connections that end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edged import unix_socket
from edged.feeders.daemon import Away, Broken, Content, Daemon, EventRule, Handed, Refused

METADATA = {
    "name": "nmnist",
    "inputs": [{"name": "events", "datatype": "FP32", "shape": [-1, 12, 2, 34, 34]}],
    "parameters": {"timesteps": 12, "events_dt_us": 26000, "events_t0": "first_event", "digest": "ab"},
}
STORED = {"parameters": {"seq": 7, "duplicate": False}, "outputs": [{"name": "label", "data": ["3"]}]}
CONTENT = Content("dat", b"abc")
Script = list[bytes | None]


def said(status: int, body: object) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data


class Server:
    """Answers requests by a script, each on a connection of its own; None ends the connection without an answer."""

    def __init__(self, path: Path, script: Script) -> None:
        self.heard: list[bytes] = []
        self._script = script
        self._listener = unix_socket.listen(path, 0o600, 8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._script:
            connection, _ = self._listener.accept()
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                lengths = [
                    line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
                ]
                while lengths and len(body) < int(lengths[0]):
                    body += connection.recv(65536)
                self.heard.append(head + b"\r\n\r\n" + body)
                if answer is not None:
                    connection.sendall(answer)

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive(), "not everything was asked"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[Daemon, Server]]]:
    made: list[tuple[Daemon, Server]] = []

    def start(*script: bytes | None) -> tuple[Daemon, Server]:
        path = tmp_path / ("long" * 30) / "http.sock"  # longer than an address of a socket may be
        path.parent.mkdir()
        made.append((Daemon(path, "nmnist"), Server(path, list(script))))
        return made[-1]

    yield start
    for daemon, server in made:
        daemon.close()
        server.close()


Serve = Callable[..., tuple[Daemon, Server]]


def test_a_model_says_what_it_takes(serve: Serve) -> None:
    daemon, _ = serve(said(200, METADATA))
    model = daemon.model()
    assert (model.input, model.shape, model.events) == ("events", (12, 2, 34, 34), EventRule(312_000, "first_event"))


def test_a_frame_travels_as_a_file_behind_its_length(serve: Serve) -> None:
    daemon, server = serve(said(200, METADATA), said(200, STORED))
    assert daemon.hand("yard:1", CONTENT) == Handed("3", 7, duplicate=False)
    head, _, body = server.heard[1].partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Inference-Header"))
    told = json.loads(body[:length])
    assert told["id"] == "yard:1"
    assert told["inputs"] == [
        {"name": "events", "shape": [1], "datatype": "BYTES",
         "parameters": {"content_type": "dat", "binary_data_size": 7}}
    ]  # fmt: skip
    assert body[length:] == b"\x03\x00\x00\x00abc"


ENDS: list[tuple[int, object, type[Any], str]] = [
    (422, {"error": "bad shape", "stored": {"seq": 1}}, Refused, "bad shape"),
    (500, {"error": "ended two workers", "stored": {"seq": 1}}, Refused, "ended two workers"),
    (400, {"error": "not a PNG"}, Refused, "not a PNG"),
    (413, {"error": "too large"}, Refused, "too large"),
    (404, {"error": "no model"}, Away, "no model"),
    (503, {"error": "queue was full"}, Away, "queue was full"),
    (500, {"error": "failed"}, Broken, "failed"),
    (500, b"plain words", Broken, "plain words"),
    (200, {"other": 1}, Broken, "not understood"),
    (200, b"\xff", Broken, "not understood"),
    (415, b"", Away, "415"),
]


@pytest.mark.parametrize(("status", "body", "kind", "reason"), ENDS)
def test_every_answer_has_its_meaning(serve: Serve, status: int, body: object, kind: type[Any], reason: str) -> None:
    daemon, _ = serve(said(200, METADATA), said(status, body))
    daemon.model()
    try:
        outcome: object = daemon.hand("k", CONTENT)
    except Away as error:
        outcome = error
    assert type(outcome) is kind
    assert reason in str(outcome)
    if isinstance(outcome, Refused):
        assert outcome.is_stored == (b"stored" in json.dumps(body).encode())


def test_a_connection_that_was_closed_for_being_quiet_is_made_anew(serve: Serve) -> None:
    daemon, server = serve(said(200, METADATA), said(200, STORED), said(200, STORED))
    daemon.model()
    assert isinstance(daemon.hand("a", CONTENT), Handed)
    assert isinstance(daemon.hand("b", CONTENT), Handed)
    assert len(server.heard) == 3


def test_an_end_in_the_middle_of_an_answer_is_not_an_answer(serve: Serve) -> None:
    daemon, _ = serve(said(200, METADATA), said(200, STORED)[:-5], None)
    daemon.model()
    with pytest.raises(Away, match=r"does not answer"):
        daemon.hand("a", CONTENT)
    with pytest.raises(Away):
        daemon.hand("a", CONTENT)
