"""NVIDIA's own packages and our adapter, as far as a machine without a GPU can bring them together.

TensorRT for RTX parses and builds every plan that we emit: it is real, and needs no GPU to build. The bindings of 8.6,
10.3, 10.16 and 11.4 take every call that the worker makes: the calls are written down while the worker runs on test
doubles, and held to the signatures of the real bindings. Neither says that anything ran on a GPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edged.bundle.graph.variants import NoVariant, standard_plans
from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.engines.engine import open_engine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineRefused
from tests.support.bundles import make_bundle
from tests.support.tensorrt import (
    GRAPHS,
    VARIANTS,
    FakeGpu,
    Subject,
    bundles,
    make_fake_gpu,
    random_subjects,
    rounded,
    subject,
)
from tests.support.tensorrt_packages import (
    BINDINGS,
    RTX,
    RTX_PACKAGE,
    Bindings,
    empty_libraries,
    installed,
    interpreter,
)
from tests.support.tree import ROOT

BRANCHES = {"8": "8.6.1", "10": "10.3.0", "11": "11.4.0.106"}  # of the adapter, by the first number of a version


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> FakeGpu:
    return make_fake_gpu(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="module")
def calls(gpu: FakeGpu, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every use of TensorRT in a worker's life, for each branch: build, read, both forms, steps, a refusal."""
    found = {}
    for branch, version in BRANCHES.items():
        folder = tmp_path_factory.mktemp("calls")
        found[branch] = folder / "calls"
        environment = {"FAKE_TENSORRT_VERSION": version, "FAKE_TENSORRT_CALLS": str(found[branch]), **gpu.environment()}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            asyncio.run(_whole_life(gpu, folder))
    return found


async def _whole_life(gpu: FakeGpu, folder: Path) -> None:
    bundle = make_bundle(folder / "dense")
    plans = await ensure_plans(bundle, folder, ["tensorrt"])
    spec = WorkerSpec("tensorrt", gpu.python, deadline_s=60.0, load_deadline_s=110.0)
    for _ in range(2):  # the second start reads what the first one built
        async with open_engine(spec, Job(bundle, 2, plans, folder)) as engine:
            assert (await prove(engine, bundle)).passed
    (plans / "f32-step.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineRefused):
        async with open_engine(spec, Job(bundle, 2, plans, folder / "other")):
            pass


def held_to(bindings: Bindings, calls: Path) -> subprocess.CompletedProcess[str]:
    place = installed(f"bindings-{bindings.version}", (bindings.requirement,))
    environment = {**os.environ, "PYTHONPATH": f"{place}:{ROOT}", "LD_LIBRARY_PATH": str(empty_libraries(place))}
    command = [sys.executable, "-m", "tests.support.tensorrt_surface", bindings.package, str(calls)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("bindings", BINDINGS, ids=lambda one: one.version)
def test_the_real_bindings_take_every_call(bindings: Bindings, calls: dict[str, Path], tmp_path: Path) -> None:
    uses = calls[bindings.version.partition(".")[0]].read_text().splitlines()
    if bindings.runs_only:
        uses = [use for use in uses if json.loads(use)[0] in RUNTIME]
    mine = tmp_path / "calls"
    mine.write_text("\n".join(uses))
    done = held_to(bindings, mine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(uses) > (10 if bindings.runs_only else 30)
    assert f"{len(uses)} uses, 0 of them not taken" in done.stdout


RUNTIME = ("Runtime", "ICudaEngine", "IExecutionContext", "TensorIOMode", "DataType", "ILogger.Severity")
WRONG = (  # what the bindings must not take, and which version knows it
    ("8.6.1", ["IBuilderConfig", "progress_monitor", "set", ["Monitor"]]),
    ("8.6.1", ["NetworkDefinitionCreationFlag", "STRONGLY_TYPED", "member", []]),
    ("10.3.0", ["IExecutionContext", "execute_async_v2", "call", ["list", "int"]]),
    ("11.4.0.106", ["BuilderFlag", "INT8", "member", []]),
    ("11.4.0.106", ["IExecutionContext", "set_tensor_address", "call", ["int", "int"]]),
    ("10.16.1.11", ["IExecutionContext", "execute_async_v3", "call", []]),
    ("11.4.0.106", ["NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "member", []]),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "use"), WRONG, ids=lambda one: one if isinstance(one, str) else f"{one[0]}.{one[1]}"
)
def test_the_bindings_refuse_what_they_do_not_have(version: str, use: list[object], tmp_path: Path) -> None:
    (tmp_path / "calls").write_text(json.dumps(use))
    bindings = next(one for one in BINDINGS if one.version == version)
    done = held_to(bindings, tmp_path / "calls")
    assert done.returncode == 1, done.stdout + done.stderr
    assert ": 1 uses, " in done.stdout
    assert "0 of them" not in done.stdout


# TensorRT for RTX


@pytest.mark.slow
def test_tensorrt_for_rtx_takes_every_call(calls: dict[str, Path]) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{installed('rtx', RTX)}:{ROOT}"}
    command = [sys.executable, "-m", "tests.support.tensorrt_surface", RTX_PACKAGE, str(calls["11"])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def emit(folder: Path) -> int:
    """Every plan that a device could be given. Returns how many."""
    made = 0
    for bundle in bundles():
        whole = subject(bundle)
        for variant in VARIANTS:
            model = rounded(whole.model) if variant == "int8" else whole.model
            try:
                plans = standard_plans(variant, Subject(whole.name, model, whole.spec).plans)
            except NoVariant:
                continue
            for name, plan in plans.items():
                (folder / f"{bundle.name}.{variant}.{name}.onnx").write_bytes(plan.SerializeToString())
                made += 1
    for one, _ in random_subjects():
        for name, plan in standard_plans("f32", one.plans).items():
            (folder / f"{one.name}.f32.{name}.onnx").write_bytes(plan.SerializeToString())
            made += 1
    return made


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_tensorrt_for_rtx_builds_every_plan_that_we_emit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = interpreter(installed("rtx", RTX), tmp_path / "venv")
    (tmp_path / "plans").mkdir()
    made = emit(tmp_path / "plans")
    assert made >= 2 * GRAPHS + 2 * 3 * 3
    command = [python, "-m", "tests.support.tensorrt_build", RTX_PACKAGE, str(tmp_path / "plans")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == made
    wrong = [one for one in found if one["result"] not in ("built", "took too long")]
    assert not wrong, wrong
    late = [one["plan"] for one in found if one["result"] == "took too long"]
    with capsys.disabled():
        print(f"\nTensorRT for RTX: {made} plans parsed, {made - len(late)} built in time; given up: {late}")
    assert all("random" in name and "window" in name for name in late), "every step plan and every bundled model"
    built = {one["plan"].partition(".")[0] for one in found if one["result"] == "built" and "window" in one["plan"]}
    assert sum(name.startswith("random") for name in built) >= 30
