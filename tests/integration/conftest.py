"""What several integration tests share: a disk that is soon full, models packed once, a broker, a store, a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker import Broker
from tests.support.parts import missing, require
from tests.support.store import packed
from tests.support.sync import Store
from tests.support.tensorrt import FakeGpu, make_fake_gpu


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MB."""
    require("root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        missing("mount", mounted.stderr.decode())
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archives of three releases of one model: ``digits-1.tar`` to ``digits-3.tar``."""
    folder = tmp_path_factory.mktemp("tars")
    for counter in (1, 2, 3):
        packed(folder, None, counter)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A device's store of results that a test fills by hand."""
    with Store(tmp_path / "state") as store:
        yield store


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A mosquitto of the test's own."""
    with Broker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture(scope="session")
def fake_gpu(tmp_path_factory: pytest.TempPathFactory) -> FakeGpu:
    """Test doubles of NVIDIA's driver and of TensorRT, compiled once."""
    return make_fake_gpu(tmp_path_factory.mktemp("gpu"))


@pytest.fixture
def gpu(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A machine with a GPU, as far as workers can tell."""
    for name, value in fake_gpu.environment().items():
        monkeypatch.setenv(name, value)
    return fake_gpu
