"""Builds a plan in a thread of its own, while the worker's main thread tells how far it is and watches the time.

A build is ended by its worker's death at any moment, and nothing of it is left but a directory that the next start
clears away. From TensorRT 10 on it can also be given up alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edged.engines.worker.tensorrt.api import Api, Built, Options, Watch

TELL_S = 1.0  # between two words of progress


def build(
    api: Api, graph: bytes, options: Options, what: str, until_s: float, progress: Callable[[str], None]
) -> Built:
    """A plan of ``graph``. At ``until_s`` (monotonic) it is given up, where TensorRT can.

    Raises ModelRefused, PlanFailed, GivenUp, and whatever TensorRT raises.
    """
    watch, began = Watch(), time.monotonic()
    made: list[Built] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            made.append(api.build(graph, options, watch))
        except BaseException as error:  # raised again in the main thread
            failed.append(error)

    thread = threading.Thread(target=work, name="build", daemon=True)
    thread.start()
    while thread.is_alive():
        spent, limit = time.monotonic() - began, until_s - began
        phase = f": {watch.phase}" if watch.phase else ""
        progress(f"building the {what} plan, {spent:.0f} s of at most {limit:.0f} s{phase}")
        thread.join(min(TELL_S, max(0.01, until_s - time.monotonic()) if api.can_give_up else TELL_S))
        if time.monotonic() > until_s:
            watch.give_up.set()
    if failed:
        raise failed[0]
    return made[0]
