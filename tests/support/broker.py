"""A real mosquitto of its own: free port, own directory, own configuration; and a client that records what arrives.

``Broker`` can be stopped, killed and started again on the same port. Nothing of the machine's own broker is touched.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.parts import program, require

START_S = 10.0


def free_port() -> int:
    """A TCP port on the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """One mosquitto. ``users``: name → password, else anybody may come; ``acl``: lines of an ACL file."""

    def __init__(
        self, directory: Path, *, users: dict[str, str] | None = None, acl: str = "", port: int = 0, extra: str = ""
    ) -> None:
        self.directory = directory
        self.port = port or free_port()
        require("mosquitto")
        self._program = program("mosquitto") or "mosquitto"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        lines = [f"listener {self.port} 127.0.0.1", "set_tcp_nodelay true", "persistence false", "log_type all", extra]
        lines.append(f"allow_anonymous {'false' if users else 'true'}")
        if users:
            lines.append(f"password_file {self._write_passwords(users)}")
        if acl:
            (directory / "acl").write_text(acl)
            (directory / "acl").chmod(0o644)
            lines.append(f"acl_file {directory / 'acl'}")
        (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._let_mosquitto_in()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and return once it listens."""
        with (self.directory / "log").open("ab") as log:
            command = [self._program, "-c", str(self.directory / "mosquitto.conf")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mosquitto does not listen on {self.port}:\n{self.log}")
            time.sleep(0.02)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End it; SIGKILL for a crash."""
        if self._process is not None:
            self._process.send_signal(signum)
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _write_passwords(self, users: dict[str, str]) -> Path:
        tool = shutil.which("mosquitto_passwd") or "mosquitto_passwd"
        path = self.directory / "passwords"
        path.touch()
        for name, password in users.items():
            subprocess.run([tool, "-b", str(path), name, password], check=True, capture_output=True)
        path.chmod(0o644)
        return path

    def _let_mosquitto_in(self) -> None:
        # Started by root, it becomes the user "mosquitto", who must reach its files through pytest's 0700 folders.
        for folder in (self.directory, *self.directory.parents):
            with contextlib.suppress(PermissionError):
                if folder.stat().st_mode & 0o077 == 0:
                    folder.chmod(0o711)


@dataclass(frozen=True, slots=True)
class Heard:
    """One message as it arrived."""

    topic: str
    payload: bytes
    retain: bool
    content_type: str
    at: float


class Ear:
    """A subscriber that records everything below ``topic``. Its session outlives a lost connection."""

    def __init__(self, broker: Broker, topic: str = "#", *, user: str = "", password: str = "") -> None:
        self.heard: list[Heard] = []
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._topic = topic
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        if user:
            self._client.username_pw_set(user, password)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        assert self._subscribed.wait(START_S), "the broker did not take the subscription"

    def wait(self, enough: Callable[[list[Heard]], Any], timeout_s: float = 15.0) -> list[Heard]:
        """Wait until what was heard is enough. Fails with what was heard."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self.heard), timeout_s):
                shown = "\n".join(f"{h.topic} {h.payload[:200]!r}" for h in self.heard[-20:])
                raise AssertionError(
                    f"not heard within {timeout_s} s; the last of {len(self.heard)} messages:\n{shown}"
                )
            return list(self.heard)

    def wait_for_more(self, messages: int) -> None:
        """Wait until so many more messages have come."""
        enough = len(self.heard) + messages
        self.wait(lambda heard: len(heard) >= enough)

    def below(self, part: str) -> list[Heard]:
        """What was heard on topics that contain ``part``."""
        with self._changed:
            return [heard for heard in self.heard if part in heard.topic]

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish and wait for the PUBACK."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(START_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        properties = message.properties or Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho
        content_type = str(getattr(properties, "ContentType", ""))
        with self._changed:
            self.heard.append(
                Heard(message.topic, bytes(message.payload), message.retain, content_type, time.monotonic())
            )
            self._changed.notify_all()
