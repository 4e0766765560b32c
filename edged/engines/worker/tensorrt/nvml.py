"""What NVIDIA's management library says of the GPU: load, memory in use, temperature. By ctypes, in nobody's way.

A thread asks every few seconds, since the driver may take its time, or never answer; whoever wants the figures gets the
last ones, at once. Whatever is missing is left out, and is no error: the library itself (a Jetson with JetPack 5 has
none), the GPU in it, or one figure (on a Jetson it knows few). Source: nvml.h of CUDA 11.4 and later.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
EVERY_S = 5.0
STALE_S = 30.0  # what nobody has confirmed for so long is not handed out
GPU_SENSOR = 0  # NVML_TEMPERATURE_GPU


class _Memory(ctypes.Structure):
    """nvmlMemory_t, bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Load(ctypes.Structure):
    """nvmlUtilization_t, percent of the last second or less."""

    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class Nvml:
    """The figures of one GPU. ``bus_id`` is its place on the bus; empty: the first GPU that the library knows."""

    def __init__(self, bus_id: str, library: str = LIBRARY) -> None:
        self._bus_id = bus_id
        self._path = library
        self._last: tuple[float, dict[str, float]] = (0.0, {})
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def figures(self) -> dict[str, float]:
        """The last ones, by the names of ``edged.engines.wire.Gpu``. Asking begins with the first call."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
            self._thread.start()
        asked_s, found = self._last
        return found if found and time.monotonic() - asked_s < STALE_S else {}

    def close(self) -> None:
        """Ask no more. Does not wait for an answer that is outstanding."""
        self._closed.set()

    def _run(self) -> None:
        try:
            library = ctypes.CDLL(self._path)
            gpu = self._open(library)
        except (OSError, AttributeError):  # not installed, or too old
            return
        while gpu is not None and not self._closed.is_set():
            self._last = (time.monotonic(), _ask(library, gpu))
            self._closed.wait(EVERY_S)

    def _open(self, library: Any) -> Any:
        """The library's handle of the GPU; None where it does not know it."""
        gpu = ctypes.c_void_p()
        if library.nvmlInit_v2():
            return None
        if self._bus_id:
            code = library.nvmlDeviceGetHandleByPciBusId_v2(self._bus_id.encode(), ctypes.byref(gpu))
        else:
            code = library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(gpu))
        return None if code else gpu


def _ask(library: Any, gpu: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    load, memory, celsius = _Load(), _Memory(), ctypes.c_uint()
    if not library.nvmlDeviceGetUtilizationRates(gpu, ctypes.byref(load)):
        found["load_percent"] = load.gpu
    if not library.nvmlDeviceGetMemoryInfo(gpu, ctypes.byref(memory)) and memory.total:
        found["memory_used_bytes"], found["memory_total_bytes"] = memory.used, memory.total
    if not library.nvmlDeviceGetTemperature(gpu, GPU_SENSOR, ctypes.byref(celsius)):
        found["temperature_c"] = celsius.value
    return found
