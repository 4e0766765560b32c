"""A spare worker: its interpreter runs, its engine is imported, it has no model yet. What a start costs most is done.

One is kept beside a worker that serves, where a pipeline asks for a standby: when that worker is lost, the next one
only loads the model. A spare that dies is replaced, and one that cannot be had is asked for again later. Nobody waits
for it.
"""

from __future__ import annotations

import asyncio
import logging

from edged.engines.life import WorkerLife, WorkerSpec
from edged.errors import EngineError

log = logging.getLogger(__name__)

PAUSE_S = 0.2  # after one was taken: the worker that frames wait for loads first, and the next loss may come soon
RETRY_S = 10.0  # after one that did not come up: the engine itself says why as soon as it is needed


class Spare:
    """Keeps one for an engine from ``keep`` until ``end``; both may come again."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._life: WorkerLife | None = None
        self._taken: asyncio.Future[str]
        self._keeping: asyncio.Task[None] | None = None

    def keep(self) -> None:
        """Have one from now on."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep(), name=f"engine:{self._spec.engine}:spare")

    def take(self) -> WorkerLife | None:
        """The spare, greeted, if there is one; whoever takes it has to end it."""
        life = self._life
        if life is None or life.hello is None or life.client.lost.done():
            return None
        self._life = None
        self._taken.set_result("")
        return life

    async def end(self) -> None:
        """Leave none."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            self._taken = asyncio.get_running_loop().create_future()
            self._life = life = WorkerLife(self._spec)
            pause_s = PAUSE_S
            try:
                await life.meet()
                await asyncio.wait([self._taken, life.client.lost], return_when=asyncio.FIRST_COMPLETED)
            except EngineError as error:
                pause_s = RETRY_S
                log.info("no spare worker", extra={"engine": self._spec.engine, "reason": str(error)})
            finally:
                if self._life is life:
                    self._life = None
                    await life.end()
            await asyncio.sleep(pause_s)
