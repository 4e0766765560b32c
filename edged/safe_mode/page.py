"""What safe mode shows while the daemon cannot run: the reason, on the daemon's sockets and in its status file.

Rules: answers what asks for health, status, metrics or the page, and everything else with 503 and the reason; changes
nothing. Standard library only. When to end is decided here by looking at the configuration; why it runs is
``edged.safe_mode.history``'s business.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import itertools
import json
import os
import re
import signal
import socket
import socketserver
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from pathlib import Path

from edged import __version__
from edged.host.systemd import Notifier, listen_sockets
from edged.safe_mode.history import Rest
from edged.safe_mode.place import Place, problem_of, replace_file

LOOK_S = 1.0  # between two looks at the configuration: a person who corrected it is waiting
PROBE_EVERY_S = 60.0  # without a change: it may name something else that came back
READ_S = 10.0  # for a request
CONNECTIONS = 16  # at once; whoever opens more waits in the socket
STATE = "safe-mode"
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="5"><title>edged: safe mode</title></head>
<body><h1>edged is in safe mode</h1><p><strong>The daemon does not run, and nothing is inferred.</strong></p>
<pre style="white-space: pre-wrap">{reason}</pre>
<p>Device {device}, edged {version}. It goes on by itself when the cause is gone. To look closer:
<code>journalctl -u edged</code></p></body></html>
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is shown."""

    device: str
    reason: str
    since: str

    def status(self) -> str:
        """As ``edged.status.Status``, as far as there is anything to say."""
        told = {
            "device": self.device,
            "version": __version__,
            "state": STATE,
            "reasons": [self.reason],
            "pid": os.getpid(),
            "started_wall": self.since,
            "wall_time": _now(),
        }
        return json.dumps(told)


def serve(rest: Rest, place: Place) -> None:
    """Tell the reason until the rest is over, the configuration has become right, or SIGTERM."""
    notifier = Notifier()
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    facts = Facts(_device(place.config), rest.reason, _now())
    print(f"<3>safe mode: {rest.reason}", file=sys.stderr, flush=True)
    replace_file(place.runtime_dir / "status.json", facts.status())
    for listening in itertools.chain.from_iterable(listen_sockets().values()):
        server = _Server(listening, facts)
        threading.Thread(target=server.serve_forever, name="answers", daemon=True).start()
    notifier.ready(f"safe mode: {rest.reason}")
    over = _until(rest, place.config)
    while not stop.is_set() and not over():
        notifier.alive()
        stop.wait(LOOK_S)
    notifier.stopping("safe mode is over; the daemon is tried again")


def _until(rest: Rest, config: Path) -> Callable[[], bool]:
    """What says that safe mode is over: a changed file, a right configuration, or time."""
    began = probed = time.monotonic()
    before = _signature(config)

    def over() -> bool:
        nonlocal probed, before
        now, signature = time.monotonic(), _signature(config)
        changed = signature != before
        if rest.longest_s is not None:
            return changed or now - began >= rest.longest_s
        if changed or now - probed >= PROBE_EVERY_S:
            probed, before = now, signature
            return not problem_of(config)
        return False

    return over


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _device(config: Path) -> str:
    """The device's id, as far as the configuration can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(tomllib.loads(config.read_text(encoding="utf-8"))["device"]["id"])
    return socket.gethostname()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# HTTP


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Answers on one socket that systemd listens on."""

    daemon_threads = True
    address_family = socket.AF_UNIX  # of the socket that the base class makes and we close: the unit forbids others

    def __init__(self, listening: socket.socket, facts: Facts) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.facts = facts
        self._room = threading.BoundedSemaphore(CONNECTIONS)

    def get_request(self) -> tuple[socket.socket, object]:
        """The next connection; a Unix socket's peer has no address."""
        connection, address = self.socket.accept()
        connection.settimeout(READ_S)
        return connection, address or ("local", 0)

    def process_request(self, request: object, client_address: object) -> None:
        """Answer in a thread, when there is room for one."""
        self._room.acquire()
        super().process_request(request, client_address)  # type: ignore[arg-type]  # typeshed knows sockets of IP only

    def shutdown_request(self, request: object) -> None:
        """The answer is given."""
        super().shutdown_request(request)  # type: ignore[arg-type]  # as above
        self._room.release()


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request. Reads nothing but its head."""

    server: _Server
    server_version = "edged"
    sys_version = ""
    timeout = READ_S

    def __getattr__(self, name: str) -> Callable[[], None]:
        """The base class looks for do_GET and so on: all methods are answered alike."""
        if name.removeprefix("do_") in METHODS:
            return self._reply
        raise AttributeError(name)

    def _reply(self) -> None:
        """Health, status, metrics and the page; the reason for everything else."""
        if not LOOPBACK.fullmatch(self.headers.get("host", "")):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "this console answers only under loopback names")
            return
        facts = self.server.facts
        why = json.dumps({"ready": False, "state": STATE, "reasons": [facts.reason]})
        match self.path.partition("?")[0]:
            case "/health" | "/v2/health/live":
                self._send(HTTPStatus.OK, "application/json", '{"live": true}')
            case "/status":
                self._send(HTTPStatus.OK, "application/json", facts.status())
            case "/metrics":
                text = f'edged_state{{state="{STATE}"}} 1\nedged_ready 0\n'
                self._send(HTTPStatus.OK, "text/plain; version=0.0.4", text)
            case "/":
                words = {"reason": facts.reason, "device": facts.device, "version": __version__}
                page = PAGE.format(**{name: escape(word) for name, word in words.items()})
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", page)
            case _:
                self._send(HTTPStatus.SERVICE_UNAVAILABLE, "application/json", why)

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("cache-control", "no-store")
        self.send_header("x-content-type-options", "nosniff")
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("retry-after", "5")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  the base class names it so
        """Requests are not logged."""
