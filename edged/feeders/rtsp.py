"""A camera by RTSP as a feeder: pictures as they come, the latest one first.

- The stream is read and decoded always (a picture needs the ones before it); ``rate_hz`` skips pictures, and where the
  daemon is slower the latest one takes the place of the one that waits, which is dropped. Both are counted.
- A camera that goes away is called again, after longer waits each time. Without a picture for ``timeout_s`` it is gone.
- The password goes into the library's address and nowhere else: no log, no command line, no message of an error.

Decodes with PyAV, in this process (docs/adr/0011-rtsp-library.md).
What a camera's bytes do to it ends this feeder only.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from functools import partial
from urllib.parse import SplitResult, quote

import av
import av.logging
from av.container import InputContainer
from av.video.frame import VideoFrame

from edged.backoff import Backoff
from edged.errors import EdgedError
from edged.feeder_config import RtspFeeder, address
from edged.feeders.credentials import password
from edged.feeders.daemon import Content
from edged.feeders.handing import Latest
from edged.feeders.kit import DRAIN_S, ExitCode, Kit
from edged.feeders.message import npy

log = logging.getLogger(__name__)

PROTOCOLS = "rtsp,rtsps,rtp,srtp,tcp,udp,tls"  # a camera cannot send us to a file or a web page
FORMATS = {"rgb": "rgb24", "gray": "gray"}


def run(settings: RtspFeeder, kit: Kit) -> ExitCode:
    """Feed until a stop. Raises ConfigError where a password cannot be read."""
    av.logging.set_level(None)  # FFmpeg's own words hold the address, password included
    _location(settings)
    latest = Latest(kit.courier(settings.model), kit.account)
    camera = _Camera(settings, kit, latest)
    threads = [
        threading.Thread(target=latest.serve, name="courier", daemon=True),
        threading.Thread(target=camera.run, name="camera", daemon=True),  # may sit in a read until its timeout
    ]
    for thread in threads:
        thread.start()
    kit.stop.wait()
    latest.finish(DRAIN_S)
    return ExitCode.OK


class _Camera:
    """Reads pictures, connection after connection."""

    def __init__(self, settings: RtspFeeder, kit: Kit, latest: Latest) -> None:
        self._settings = settings
        self._kit = kit
        self._latest = latest
        self._run = uuid.uuid4().hex[:12]
        self._number = 0
        self._due = 0.0
        self._backoff = Backoff(lambda: random.uniform(0.5, 1))  # noqa: S311 -- spreads reconnections only

    def run(self) -> None:
        """Read until a stop."""
        while not self._kit.stop.is_set():
            self._read_once()
            self._kit.stop.wait(self._backoff.wait_s())

    def _read_once(self) -> None:
        """One connection, from dialling to its end."""
        try:
            with self._opened() as container:
                self._kit.account.count(connections=1)
                for number, picture in enumerate(container.decode(video=0)):
                    if self._kit.stop.is_set():
                        return
                    if number == 0:
                        self._begin(picture)
                    self._take(picture)
            reason = "the stream ended"
        except (av.FFmpegError, OSError) as error:
            reason = error.strerror or type(error).__name__  # its text would hold the address
        except EdgedError as error:
            reason = str(error)
        self._kit.account.say(f"the camera is away: {reason}")

    def _opened(self) -> InputContainer:
        settings = self._settings
        options = {"rtsp_transport": settings.transport, "fflags": "nobuffer", "protocol_whitelist": PROTOCOLS}
        return av.open(_location(settings), options=options, timeout=settings.timeout_s)

    def _begin(self, picture: VideoFrame) -> None:
        """The first picture of a connection: the camera is there."""
        size = f"{picture.width}x{picture.height}"
        log.info("the camera sends", extra={"feeder": self._settings.name, "size": size, "format": picture.format.name})
        self._backoff.reset()
        self._kit.account.say("running")

    def _take(self, picture: VideoFrame) -> None:
        self._number += 1
        self._kit.account.count(received=1)
        now = time.monotonic()
        if now < self._due:
            self._kit.account.count(skipped=1)
            return
        if self._settings.rate_hz:  # no sum of steps: after a pause pictures must not come in a burst
            self._due = max(self._due + 1 / self._settings.rate_hz, now - 1 / self._settings.rate_hz)
        self._latest.put(
            f"{self._settings.name}:{self._run}:{self._number:09}", partial(_content, picture, self._settings)
        )


def _content(picture: VideoFrame, settings: RtspFeeder) -> Content:
    """The picture as an array (H, W, 3) or (H, W) of uint8; what the model makes of it is its manifest's to say."""
    width, height = settings.width or picture.width, settings.height or picture.height
    return npy(picture.to_ndarray(format=FORMATS[settings.pixels], width=width, height=height))


def _location(settings: RtspFeeder) -> str:
    """The camera's address with its user, for the library alone. Raises ConfigError."""
    where: SplitResult = address(settings.url)
    if not settings.username:
        return settings.url
    secret = password(settings.password_file, settings.password_env)
    user = quote(settings.username, safe="") + (f":{quote(secret, safe='')}" if secret is not None else "")
    return where._replace(netloc=f"{user}@{where.netloc}").geturl()
