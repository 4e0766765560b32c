"""TensorRT in tests: the plans that it is given, of models and random graphs; test doubles."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings
from onnx import numpy_helper

from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.plans import window_plan
from edged.bundle.graph.quantized import output_axis
from edged.bundle.graph.spec import GraphSpec
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.plans import ensure_plans
from edged.engines.engine import WorkerEngine, open_engine
from edged.engines.life import Job, WorkerSpec
from tests.support.parts import missing, program
from tests.support.random_graphs import Scenario, scenarios
from tests.support.tree import ROOT

T = TypeVar("T")
GRAPHS = 52  # random ones
MAX_BATCH = 5  # no power of two: 1, 2, 4 and 5 rows are run
VARIANTS = ("f32", "fp16", "int8")
FAKES = ROOT / "tests" / "support" / "fake_gpu"


@dataclass(frozen=True)
class Subject:
    """A step graph and its unrolled window."""

    name: str
    model: onnx.ModelProto
    spec: GraphSpec

    @property
    def plans(self) -> dict[str, onnx.ModelProto]:
        return {"step": self.model, "window": window_plan(self.model, self.spec, "unrolled", raw=True)}


def bundles() -> list[Bundle]:
    """Every bundled model."""
    return [open_bundle(path) for path in sorted((ROOT / "models").glob("*/bundle"))]


def subject(bundle: Bundle) -> Subject:
    """A bundle's graph."""
    model = check_step_graph(bundle.read(bundle.manifest.variant.model), bundle.spec)
    return Subject(bundle.name, model, bundle.spec)


def random_scenarios(count: int = GRAPHS) -> list[Scenario]:
    """The same random graphs each time, each with a batch of inputs."""
    found: list[Scenario] = []

    for k in range(count):

        @seed(k)
        @settings(max_examples=4, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(scenarios())
        def collect(scenario: Scenario) -> None:
            found.append(scenario)

        collect()
        del found[k:-1]  # the first ones of a seed are the smallest, and the same for every seed
    return found


def random_subjects() -> Iterator[tuple[Subject, dict[str, np.ndarray]]]:
    """The random graphs with their inputs."""
    for k, scenario in enumerate(random_scenarios()):
        model = check_step_graph(scenario.graph.model.SerializeToString(), scenario.spec)
        yield Subject(f"random-{k}", model, scenario.spec), scenario.inputs


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights as multiples of one step a channel, as ``--weights int8`` makes them."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    axes = {node.input[1]: output_axis(node) for node in made.graph.node if len(node.input) > 1}
    for tensor in made.graph.initializer:
        axis = axes.get(tensor.name)
        if axis is not None:
            weight = numpy_helper.to_array(tensor)
            rest = tuple(k for k in range(weight.ndim) if k != axis)
            peak = np.abs(weight).max(axis=rest, keepdims=True)
            step = (np.where(peak > 0, peak, 127) / np.float32(127)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array((np.round(weight / step) * step).astype(np.float32), tensor.name))
    return made


@dataclass(frozen=True)
class FakeGpu:
    """Test doubles of NVIDIA's driver and of TensorRT, and an interpreter that finds them. No GPU is involved."""

    python: str
    library_dir: Path

    def environment(self) -> dict[str, str]:
        """What a worker needs in its environment."""
        return {"LD_LIBRARY_PATH": str(self.library_dir)}


def make_fake_gpu(folder: Path, python: str = sys.executable, packages: Path | None = None) -> FakeGpu:
    """Compile the doubles of the driver and of NVML, and make an environment whose ``tensorrt`` is the other one.

    ``packages``: where NumPy and ONNX Runtime are for ``python``; those of this process where it is left out.
    """
    compiler = program("cc")
    if compiler is None:
        missing("a C compiler", "gcc makes the test double of libcuda.so.1")
    assert compiler is not None
    library = folder / "lib"
    library.mkdir(parents=True)
    for name, source in (("libcuda.so.1", "cuda.c"), ("libnvidia-ml.so.1", "nvml.c")):
        command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library / name)]
        subprocess.run([*command, str(FAKES / source)], check=True)
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    own = packages or Path(np.__file__).parents[1]
    (site / "fakes.pth").write_text(f"{FAKES}\n{own}\n")
    return FakeGpu(str(folder / "venv" / "bin" / "python"), library)


def spec_of(gpu: FakeGpu, engine: str = "tensorrt", load_deadline_s: float = 90.0) -> WorkerSpec:
    """A worker on the doubles."""
    return WorkerSpec(engine, gpu.python, deadline_s=30.0, load_deadline_s=load_deadline_s)


def on_tensorrt(
    gpu: FakeGpu,
    bundle: Bundle,
    cache: Path,
    use: Callable[[WorkerEngine], Awaitable[T]],
    spec: WorkerSpec | None = None,
) -> T:
    """Load a bundle in a worker, use it, end it."""

    async def main() -> T:
        chosen = spec or spec_of(gpu)
        plans = await ensure_plans(bundle, cache, [chosen.engine])
        async with open_engine(chosen, Job(bundle, MAX_BATCH, plans, cache)) as engine:
            return await use(engine)

    return asyncio.run(main())


async def plan_of(engine: WorkerEngine) -> str:
    """The form in which its windows run."""
    return engine.facts().plan
