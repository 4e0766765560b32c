"""A test double of TensorRT's Python package: plans run on ONNX Runtime, in the memory of our fake CUDA. No GPU.

It has the names that the worker uses and nothing else, is as strict as the real package where that is documented
(aligned addresses, every tensor placed, shapes set), and notes each use in the file that FAKE_TENSORRT_CALLS names, for
a comparison with the real package. Python 3.8. The environment says how it behaves: FAKE_TENSORRT_VERSION;
FAKE_TENSORRT_SLOW=PART:SECONDS, FAKE_TENSORRT_FAIL=PART (or "crash in PART"), where a part is step or window;
FAKE_TENSORRT_UNRECORDED spoils captures.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]  # ships no stubs

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "10.3.0")
OLD = int(__version__.split(".")[0]) < 10
MAGIC = b"test double of a plan\n"
_seen: set[str] = set()
_cuda = ctypes.CDLL("libcuda.so.1")
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_cuda.fake_enqueue.argtypes = [ctypes.c_void_p, CALLBACK, ctypes.c_void_p]
_cuda.fake_capturing.argtypes = _cuda.fake_spoil.argtypes = [ctypes.c_void_p]


def _note(owner: str, name: str, kind: str, arguments: list[str]) -> None:
    line = json.dumps([owner, name, kind, arguments])
    path = os.environ.get("FAKE_TENSORRT_CALLS")
    if path and line not in _seen:
        _seen.add(line)
        with Path(path).open("a") as file:
            file.write(line + "\n")


def _kind(value: Any) -> str:
    return str(value) if isinstance(value, Member) else type(value).__name__


class Member:
    def __init__(self, owner: str, name: str, number: int) -> None:
        self.owner, self.name, self.number = owner, name, number

    def __int__(self) -> int:
        return self.number

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


class Enumeration:
    """An enumeration of the package: asking for a member is noted."""

    def __init__(self, name: str, *members: str) -> None:
        self._name = name
        self._members = {member: Member(name, member, k) for k, member in enumerate(members)}

    def __getattr__(self, name: str) -> Member:
        if name not in self._members:
            raise AttributeError(name)
        _note(self._name, name, "member", [])
        return self._members[name]


class Recorded:
    """A class of the package: every public use from outside is noted."""

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("_"):
            return value
        owner = type(self).__name__
        if not callable(value):
            _note(owner, name, "get", [])
            return value

        def call(*arguments: Any) -> Any:
            _note(owner, name, "call", [_kind(a) for a in arguments])
            return value(*arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            _note(type(self).__name__, name, "set", [_kind(value)])
        object.__setattr__(self, name, value)


class ILogger:
    Severity = Enumeration("ILogger.Severity", "INTERNAL_ERROR", "ERROR", "WARNING")

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError("whoever logs has a class of its own")


NetworkDefinitionCreationFlag = Enumeration(
    "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH" if OLD else "STRONGLY_TYPED"
)
BuilderFlag = Enumeration("BuilderFlag", "TF32", "INT8") if OLD else Enumeration("BuilderFlag", "TF32")
MemoryPoolType = Enumeration("MemoryPoolType", "WORKSPACE")
TensorIOMode = Enumeration("TensorIOMode", "INPUT", "OUTPUT")
DataType = Enumeration("DataType", "FLOAT", "HALF")

if not OLD:

    class IProgressMonitor:
        pass


class ITensor(Recorded):
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "shape", shape)


def _session(graph: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in node.shape)


class INetworkDefinition(Recorded):
    def __init__(self) -> None:
        object.__setattr__(self, "_graph", b"")
        object.__setattr__(self, "_session", None)

    @property
    def num_inputs(self) -> int:
        return len(self._session.get_inputs())

    def get_input(self, index: int) -> ITensor:
        node = self._session.get_inputs()[index]
        return ITensor(node.name, _shape(node))


class IParserError(Recorded):
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser(Recorded):
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        _note("OnnxParser", "__init__", "call", ["INetworkDefinition", "ILogger"])
        self._network = network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> IParserError:
        return IParserError(self._errors[index])

    def parse(self, model: bytes) -> bool:
        try:
            object.__setattr__(self._network, "_session", _session(model))
        except Exception as error:  # a parser collects whatever is wrong
            self._errors.append(str(error))
            return False
        object.__setattr__(self._network, "_graph", model)
        return True


class IHostMemory(bytes):
    pass


class ITimingCache(Recorded):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data + b"+")


class IOptimizationProfile(Recorded):
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...]) -> None:
        self._shapes[name] = (least, best, most)


class IBuilderConfig(Recorded):
    def __init__(self) -> None:
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self._monitor: Any = None

    def set_memory_pool_limit(self, pool: Member, size: int) -> None:
        pass

    def set_flag(self, flag: Member) -> None:
        pass

    def clear_flag(self, flag: Member) -> None:
        pass

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return 0

    def create_timing_cache(self, data: bytes) -> ITimingCache:
        return ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        assert self._cache is not None
        return self._cache

    @property
    def progress_monitor(self) -> Any:
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        assert not OLD
        self._monitor = monitor


class Builder(Recorded):
    def __init__(self, logger: Any) -> None:
        _note("Builder", "__init__", "call", ["ILogger"])
        assert isinstance(logger, ILogger)
        self._logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 1
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        graph = network._graph
        part = "window" if network._session.get_outputs()[0].name == "outputs" else "step"
        if os.environ.get("FAKE_TENSORRT_FAIL") in (part, "all"):
            self._logger.log(ILogger.Severity.ERROR, f"cannot build the {part}, as the test wants it")
            return None
        if os.environ.get("FAKE_TENSORRT_FAIL") == f"crash in {part}":
            os.kill(os.getpid(), signal.SIGSEGV)
        slow, _, seconds = os.environ.get("FAKE_TENSORRT_SLOW", "").partition(":")
        until = time.monotonic() + (float(seconds) if slow == part else 0.0)
        monitor = config._monitor
        if monitor is not None:
            monitor.phase_start("Building", None, 100)
        while time.monotonic() < until:
            time.sleep(0.01)
            if monitor is not None and not monitor.step_complete("Building", 1):
                return None
        if monitor is not None:
            monitor.phase_finish("Building")
        (profile,) = config._profiles
        head = json.dumps({"version": __version__, "profile": profile._shapes}).encode() + b"\n"
        body = MAGIC + head + graph
        return IHostMemory(body + hashlib.sha256(body).digest())


class Runtime(Recorded):
    def __init__(self, logger: Any) -> None:
        _note("Runtime", "__init__", "call", ["ILogger"])
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        body, seal = plan[:-32], plan[-32:]
        if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != seal:
            self._logger.log(ILogger.Severity.ERROR, "the plan is damaged")
            return None
        head, _, graph = body[len(MAGIC) :].partition(b"\n")
        described = json.loads(head)
        if described["version"] != __version__:
            self._logger.log(ILogger.Severity.ERROR, "the plan is of another version")
            return None
        return ICudaEngine(graph, described["profile"])


class ICudaEngine(Recorded):
    def __init__(self, graph: bytes, profile: dict[str, Any]) -> None:
        self._session, self._profile = _session(graph), profile
        nodes = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._shapes = {node.name: _shape(node) for node in nodes}
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._names = list(self._shapes)

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, index: int) -> str:
        name: str = self._names[index]
        return name

    def get_tensor_mode(self, name: str) -> Member:
        return TensorIOMode._members["INPUT" if name in self._inputs else "OUTPUT"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def get_tensor_dtype(self, name: str) -> Member:
        return DataType._members["FLOAT"]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext(Recorded):
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._set: dict[str, tuple[int, ...]] = {}
        self._calls: dict[Any, Any] = {}
        self._warm = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine._profile[name]
        fits = len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most))  # noqa: B905  # Python 3.8; compared before
        if fits:
            self._set[name] = tuple(shape)
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self._engine._shapes or address % 256:
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if set(self._addresses) != set(self._engine._names) or set(self._set) != set(self._engine._inputs):
            return False
        capturing = _cuda.fake_capturing(stream)
        if capturing and (not self._warm or "FAKE_TENSORRT_UNRECORDED" in os.environ):
            _cuda.fake_spoil(stream)
            return False
        self._warm = True
        key = tuple(sorted(self._addresses.items()))
        if key not in self._calls:
            self._calls[key] = CALLBACK(lambda _, placed=dict(self._addresses): self._run(placed))
        return bool(_cuda.fake_enqueue(stream, self._calls[key], None) == 0)

    def _run(self, placed: dict[str, int]) -> None:
        session = self._engine._session
        feeds = {name: _view(placed[name], shape).copy() for name, shape in self._set.items()}
        for node, value in zip(session.get_outputs(), session.run(None, feeds)):  # noqa: B905  # Python 3.8; as many
            _view(placed[node.name], value.shape)[...] = value


def _view(address: int, shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape)) * 4
    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address)).view(np.float32).reshape(shape)
