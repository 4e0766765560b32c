"""The TensorRT worker on the Pythons that JetPack brings (3.8, 3.10, 3.12), on test doubles: no GPU, no TensorRT.

A device's worker has the standard library, NumPy and TensorRT. Here it has ONNX Runtime besides, on which the double of
TensorRT runs; the worker itself does not import it.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from edged.bundle.plans import ensure_plans
from edged.bundle.selftest import prove
from edged.engines.engine import open_engine
from edged.engines.life import Job, WorkerSpec
from tests.support.bundles import make_bundle
from tests.support.parts import missing, optional
from tests.support.tensorrt import FakeGpu, make_fake_gpu
from tests.support.tensorrt_packages import PLACE
from tests.support.tree import ROOT

JETPACKS = {"3.8": "8.5.2.2", "3.10": "10.3.0", "3.12": "10.13.3.9"}  # and the TensorRT that comes with it


def packages(python: str, version: str) -> Path:
    """NumPy and ONNX Runtime for an interpreter, installed once."""
    venv = PLACE / f"python{version}"
    if not (venv / "made").exists():
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
        uv = ROOT / ".tools" / "bin" / "uv"  # ten times as fast as pip, where scripts/test has put it
        pip = [str(uv), "pip", "install", "-p", str(venv / "bin" / "python")]
        pip = pip if uv.exists() else [str(venv / "bin" / "pip"), "install"]
        if subprocess.run([*pip, "--quiet", "numpy", "onnxruntime"], check=False).returncode != 0:
            missing(f"NumPy and ONNX Runtime for Python {version}", "pip cannot install them")
        (venv / "made").touch()
    return next((venv / "lib").glob("python*/site-packages"))


@pytest.mark.slow
@pytest.mark.parametrize("version", JETPACKS)
def test_a_worker_on_jetpack_s_python_proves_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-V"], capture_output=True, check=False).returncode != 0:
        optional(f"python{version}", "JetPack's Python; install it to run this")
    gpu: FakeGpu = make_fake_gpu(tmp_path / "gpu", python, packages(python, version))
    for name, value in gpu.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", JETPACKS[version])
    bundle = make_bundle(tmp_path / "conv", kind="conv")

    async def main() -> None:
        plans = await ensure_plans(bundle, tmp_path, ["tensorrt"])
        spec = WorkerSpec("tensorrt", gpu.python, deadline_s=30.0, load_deadline_s=90.0)
        for _ in range(2):  # built, then read
            async with open_engine(spec, Job(bundle, 3, plans, tmp_path)) as engine:
                report = await prove(engine, bundle)
                assert report.passed, report.reason
                assert engine.facts().version.startswith(JETPACKS[version])

    asyncio.run(main())
