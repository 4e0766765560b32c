"""CUDA's driver API through ctypes: what a worker needs of it, and nothing that would have to be installed.

``libcuda.so.1`` comes with the driver, on a Jetson too. All calls are those of CUDA 11.4 (JetPack 5) and later. Every
failure raises with the driver's own name for it. One device, one stream, one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LIBRARY = "libcuda.so.1"
ALIGNMENT = 256  # bytes; TensorRT wants tensors at such addresses, and CUDA's allocations begin at them
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the default stream is not waited for
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do does not spoil a capture
MAJOR, MINOR, INTEGRATED = 75, 76, 18  # CU_DEVICE_ATTRIBUTE_…
NAME_BYTES = 256

_int, _size, _pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_address, _to = ctypes.c_uint64, ctypes.POINTER
CALLS: dict[str, list[Any]] = {  # the arguments of each function, as cuda.h has them
    "cuInit": [ctypes.c_uint],
    "cuDriverGetVersion": [_to(_int)],
    "cuDeviceGetCount": [_to(_int)],
    "cuDeviceGet": [_to(_int), _int],
    "cuDeviceGetName": [ctypes.c_char_p, _int, _int],
    "cuDeviceGetAttribute": [_to(_int), _int, _int],
    "cuDeviceGetPCIBusId": [ctypes.c_char_p, _int, _int],
    "cuDevicePrimaryCtxRetain": [_to(_pointer), _int],
    "cuCtxSetCurrent": [_pointer],
    "cuMemGetInfo_v2": [_to(_size), _to(_size)],
    "cuMemAlloc_v2": [_to(_address), _size],
    "cuMemFree_v2": [_address],
    "cuMemHostAlloc": [_to(_pointer), _size, ctypes.c_uint],
    "cuMemFreeHost": [_pointer],
    "cuMemcpyHtoDAsync_v2": [_address, _pointer, _size, _pointer],
    "cuMemcpyDtoHAsync_v2": [_pointer, _address, _size, _pointer],
    "cuMemsetD8Async": [_address, ctypes.c_ubyte, _size, _pointer],
    "cuStreamCreate": [_to(_pointer), ctypes.c_uint],
    "cuStreamSynchronize": [_pointer],
    "cuStreamBeginCapture_v2": [_pointer, _int],
    "cuStreamEndCapture": [_pointer, _to(_pointer)],
    "cuGraphInstantiateWithFlags": [_to(_pointer), _pointer, ctypes.c_ulonglong],
    "cuGraphLaunch": [_pointer, _pointer],
    "cuGraphExecDestroy": [_pointer],
    "cuGraphDestroy": [_pointer],
}


class NoGpu(Exception):
    """There is no GPU here that CUDA can use, and why."""


class CudaError(Exception):
    """The driver refused a call; the process's use of the GPU may be over."""


class Device(NamedTuple):
    """The GPU. ``sm`` is its compute capability as one number: 72 Xavier, 87 Orin, 110 Thor."""

    name: str
    sm: int
    driver: int  # newest CUDA that the driver runs: 12060 is 12.6
    integrated: bool  # shares the machine's memory, as a Jetson's GPU does


class Cuda:
    """The first GPU that the driver shows (``CUDA_VISIBLE_DEVICES`` chooses), with one stream."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Raises NoGpu."""
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise NoGpu(f"no GPU: NVIDIA's driver is not installed ({error})") from None
        for name, arguments in CALLS.items():
            function = getattr(self._library, name, None)
            if function is None:
                raise NoGpu(f"no GPU that can be used: the driver is older than CUDA 11.4 (it has no {name})")
            function.argtypes, function.restype = arguments, _int
        code = self._library.cuInit(0)
        if code:
            raise NoGpu(f"no GPU: cuInit says {self._name(code)} ({code})")
        count = self._out(_int, "cuDeviceGetCount")
        if not count:
            raise NoGpu("no GPU: cuDeviceGetCount says 0")
        self._number = self._out(_int, "cuDeviceGet", 0)
        self.bus_id = ""  # such as 0000:01:00.0; empty where the GPU is part of the machine's chip
        self.device = self._device()
        self.call("cuCtxSetCurrent", self._out(_pointer, "cuDevicePrimaryCtxRetain", self._number))
        self.stream: int = self._out(_pointer, "cuStreamCreate", NON_BLOCKING)

    def call(self, name: str, *arguments: Any) -> None:
        """One function of ``CALLS``. Raises CudaError."""
        code = getattr(self._library, name)(*arguments)
        if code:
            raise CudaError(f"{name} says {self._name(code)} ({code})")

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory: free, and all."""
        free, total = _size(), _size()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def upload(self, to: int, array: Any) -> None:
        """Copy a pinned array to the GPU, in the stream."""
        self.call("cuMemcpyHtoDAsync_v2", to, array.ctypes.data, array.nbytes, self.stream)

    def download(self, array: Any, source: int) -> None:
        """Copy from the GPU into a pinned array, in the stream."""
        self.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, source, array.nbytes, self.stream)

    def zero(self, at: int, size_bytes: int) -> None:
        """Clear memory of the GPU, in the stream."""
        self.call("cuMemsetD8Async", at, 0, size_bytes, self.stream)

    def wait(self) -> None:
        """Until everything in the stream is done."""
        self.call("cuStreamSynchronize", self.stream)

    def record(self, work: Callable[[], None]) -> Graph:
        """What ``work`` puts into the stream, as a graph instead. Raises CudaError, and what ``work`` raises."""
        self.call("cuStreamBeginCapture_v2", self.stream, THREAD_LOCAL)
        try:
            work()
        except BaseException:  # a cancellation too: what was begun is undone, and it goes on
            with contextlib.suppress(CudaError):  # the capture is spoilt, which is what ended it
                self.call("cuGraphDestroy", self._out(_pointer, "cuStreamEndCapture", after=self.stream))
            raise
        graph = self._out(_pointer, "cuStreamEndCapture", after=self.stream)
        try:
            return Graph(self, self._out(_pointer, "cuGraphInstantiateWithFlags", graph, 0))
        finally:
            self.call("cuGraphDestroy", graph)

    def _device(self) -> Device:
        name = ctypes.create_string_buffer(NAME_BYTES)
        self.call("cuDeviceGetName", name, NAME_BYTES, self._number)
        major, minor, integrated = (
            self._out(_int, "cuDeviceGetAttribute", attribute, self._number) for attribute in (MAJOR, MINOR, INTEGRATED)
        )
        driver = self._out(_int, "cuDriverGetVersion")
        self.bus_id = "" if integrated else self._place()
        return Device(name.value.decode("utf-8", "replace"), 10 * major + minor, driver, bool(integrated))

    def _place(self) -> str:
        place = ctypes.create_string_buffer(NAME_BYTES)
        with contextlib.suppress(CudaError):  # a GPU without one still computes
            self.call("cuDeviceGetPCIBusId", place, NAME_BYTES, self._number)
        return place.value.decode("ascii", "replace") or f"GPU {self._number}"

    def _out(self, kind: Any, name: str, *arguments: Any, after: int | None = None) -> Any:
        """What a function writes through its first argument; or through its last, ``after`` another."""
        value = kind()
        if after is not None:
            self.call(name, after, ctypes.byref(value), *arguments)
        else:
            self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def _name(self, code: int) -> str:
        text = ctypes.c_char_p()
        function = getattr(self._library, "cuGetErrorName", None)
        if function is None or function(_int(code), ctypes.byref(text)) or not text.value:
            return "an error"
        return text.value.decode()


class Graph:
    """Recorded work, launched by one call."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        self._cuda = cuda
        self._handle = handle

    def launch(self) -> None:
        """Into the stream."""
        self._cuda.call("cuGraphLaunch", self._handle, self._cuda.stream)

    def close(self) -> None:
        """Free it."""
        self._cuda.call("cuGraphExecDestroy", self._handle)


class Buffer:
    """A buffer on the GPU and its twin in pinned memory of the host, which the GPU copies by itself."""

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self.size_bytes = max(ALIGNMENT, size_bytes)
        self._cuda = cuda
        address, host = _address(), _pointer()
        cuda.call("cuMemAlloc_v2", ctypes.byref(address), self.size_bytes)
        self.address: int = address.value
        try:
            cuda.call("cuMemHostAlloc", ctypes.byref(host), self.size_bytes, 0)
        except CudaError:
            cuda.call("cuMemFree_v2", self.address)
            raise
        self._host = host.value
        self.bytes: Any = np.ctypeslib.as_array((ctypes.c_ubyte * self.size_bytes).from_address(host.value or 0))

    def close(self) -> None:
        """Free both. Nobody may look at the twin again."""
        self._cuda.call("cuMemFree_v2", self.address)
        self._cuda.call("cuMemFreeHost", self._host)


def aligned(size_bytes: int) -> int:
    """The next size that keeps what follows at a legal address."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT
