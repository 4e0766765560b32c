"""The calls of TensorRT that 8.5 to 11 and TensorRT for RTX have in common, and the few places in which they differ.

The package is given by its name: ``tensorrt``, ``tensorrt_rtx``, or ``tensorrt_lean``, which runs plans and builds
none. What differs is in this file alone: 8 wants batches declared explicit and int8 switched on; from 10 on the types
come from the graph, and the phases of a build are told. TF32 is off everywhere: it would round membranes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from edged.engines.worker.engine import ModelRefused

WORKSPACE_BYTES = 256 << 20  # of scratch memory that a layer may ask for: a spiking model's layers are small
STRONG = 10  # the first version that takes every tensor's type from the graph
ERRORS_KEPT = 20  # lines that TensorRT said, for the reason of a failure


class PlanFailed(Exception):
    """TensorRT did not make or take a plan; another attempt may fare better."""


class Options(NamedTuple):
    """What a plan is built for. ``timings``: what earlier builds measured, as TensorRT wrote it."""

    largest: int  # batch
    int8: bool
    timings: bytes


class Built(NamedTuple):
    """A plan, and what its build measured."""

    plan: bytes
    timings: bytes


class Api:
    """One package of TensorRT. Everything that it is asked goes through here."""

    def __init__(self, package: str) -> None:
        """Raises ImportError."""
        self.trt: Any = importlib.import_module(package)
        self.package = package
        self.version: str = self.trt.__version__
        self.is_rtx = "rtx" in package
        self.strong = self.is_rtx or int(self.version.partition(".")[0]) >= STRONG
        self.builds = hasattr(self.trt, "Builder")
        self._log = _logger(self.trt)

    @property
    def said(self) -> str:
        """The last error that TensorRT logged."""
        return self._log.said[-1] if self._log.said else "it gave no reason"

    def build(self, graph: bytes, options: Options, tell: Callable[[str], None]) -> Built:
        """Make a plan. Takes seconds to minutes; from 10 on it tells the phases. Raises ModelRefused, PlanFailed."""
        trt = self.trt
        builder = trt.Builder(self._log)
        network = builder.create_network(self._network_flags())
        self._parse(network, graph)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        config.clear_flag(trt.BuilderFlag.TF32)
        if options.int8 and not self.strong:
            config.set_flag(trt.BuilderFlag.INT8)
        config.add_optimization_profile(self._profile(builder, network, options.largest))
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(trt, tell)
        cached = not self.is_rtx  # RTX chooses kernels when it runs: there is nothing to measure before
        if cached:
            config.set_timing_cache(config.create_timing_cache(options.timings), False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise PlanFailed(f"TensorRT {self.version} built no plan: {self.said}")
        return Built(bytes(plan), bytes(config.get_timing_cache().serialize()) if cached else b"")

    def read(self, plan: bytes) -> Compiled:
        """A plan made ready to run. Raises PlanFailed."""
        runtime = self.trt.Runtime(self._log)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise PlanFailed(f"TensorRT {self.version} does not take the plan: {self.said}")
        return Compiled(self.trt, runtime, engine)

    def _network_flags(self) -> int:
        flag = self.trt.NetworkDefinitionCreationFlag
        return 1 << int(flag.STRONGLY_TYPED if self.strong else flag.EXPLICIT_BATCH)

    def _parse(self, network: Any, graph: bytes) -> None:
        parser = self.trt.OnnxParser(network, self._log)
        if not parser.parse(graph):
            errors = [parser.get_error(k).desc() for k in range(parser.num_errors)]
            raise ModelRefused(f"TensorRT {self.version} does not take the graph: {'; '.join(errors) or self.said}")

    def _profile(self, builder: Any, network: Any, largest: int) -> Any:
        """Batches of 1 to the largest, best for the largest; no freedom at all where that is 1."""
        profile = builder.create_optimization_profile()
        for k in range(network.num_inputs):
            entry = network.get_input(k)
            shape = tuple(entry.shape)
            sizes = [tuple(batch if size < 0 else size for size in shape) for batch in (1, largest, largest)]
            profile.set_shape(entry.name, *sizes)
        return profile


class Compiled:
    """A plan on the GPU. ``inputs`` and ``outputs``: their shapes by name, -1 where the batch is."""

    def __init__(self, trt: Any, runtime: Any, engine: Any) -> None:
        self._runtime = runtime  # must outlive its engine
        self._engine = engine
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, tuple[int, ...]] = {}
        for k in range(engine.num_io_tensors):
            name = engine.get_tensor_name(k)
            if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise PlanFailed(f"the plan's tensor {name} is not float32")
            of = self.inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else self.outputs
            of[name] = tuple(engine.get_tensor_shape(name))

    def context(self, batch: int) -> Context:
        """A place to run it with one batch. Raises PlanFailed."""
        context = self._engine.create_execution_context()
        if context is None:
            raise PlanFailed("TensorRT made no execution context: is there enough memory on the GPU?")
        for name, shape in self.inputs.items():
            if not context.set_input_shape(name, tuple(batch if size < 0 else size for size in shape)):
                raise PlanFailed(f"the plan does not take batches of {batch} at {name}")
        return Context(self, context)


class Context:
    """A plan that runs with one batch, at the addresses that it was told last.

    Names that the plan lacks are passed over: TensorRT drops an input that no output depends on.
    """

    def __init__(self, compiled: Compiled, context: Any) -> None:
        self._known = {*compiled.inputs, *compiled.outputs}
        self._context = context

    def place(self, name: str, address: int) -> None:
        """Where a tensor lies from now on. Raises PlanFailed."""
        if name in self._known and not self._context.set_tensor_address(name, address):
            raise PlanFailed(f"TensorRT does not take an address for {name}")

    def enqueue(self, stream: int) -> None:
        """Put one run into the stream. Raises PlanFailed."""
        if not self._context.execute_async_v3(stream):
            raise PlanFailed("TensorRT did not start")


def _logger(trt: Any) -> Any:
    """Keeps what TensorRT says of errors; everything else is silence."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the package is chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.said = [*self.said[1 - ERRORS_KEPT :], message.strip()]
                print(f"TensorRT: {message.strip()}", flush=True)

    return Logger()


def _monitor(trt: Any, tell: Callable[[str], None]) -> Any:
    """Tells which phase of a build begins."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, _steps: int) -> None:
            if parent_phase is None:  # what is inside of a phase changes many times a second
                tell(phase_name)

        def step_complete(self, _phase: str, _step: int) -> bool:
            return True  # a build that is to end is killed

        def phase_finish(self, _phase: str) -> None:
            pass

    return Monitor()
