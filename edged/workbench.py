"""Where a command tries an engine, beside the daemon and as it would (``edged check``, ``engines``, ``doctor``).

In a unit of its own where systemd offers one and whoever runs the command may ask for it, as root may; the cache is
then beside the daemon's own, where the unit sees it. Elsewhere as a child of this process. Nothing stays of either.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edged.config import Config
from edged.engines.life import WorkerSpec
from edged.lane import worker_spec

PREFIX = "edged-try-"
FOR_THE_GROUP = 0o2770  # the worker has another user, and the daemon's group


@dataclass(frozen=True, slots=True)
class Workbench:
    """How to run the engine, and a directory for plans that is gone afterwards."""

    spec: WorkerSpec
    cache: Path


@contextlib.contextmanager
def workbench(config: Config, engine: str) -> Iterator[Workbench]:
    """A place to try an engine at."""
    hosted, shared = worker_spec(engine, config.engines, config.device.hosts_dir), config.device.cache_dir
    if hosted.host is not None and os.access(hosted.host, os.W_OK) and os.access(shared, os.W_OK):
        before = os.umask(0o007)
        try:
            with tempfile.TemporaryDirectory(prefix=PREFIX, dir=shared) as cache:
                Path(cache).chmod(FOR_THE_GROUP)
                yield Workbench(hosted, Path(cache))
        finally:
            os.umask(before)
    else:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as cache:
            yield Workbench(worker_spec(engine, config.engines), Path(cache))
