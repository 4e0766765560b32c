"""The plan cache: derived in a subprocess, shared, rebuilt when damaged, refused with the subprocess' reason."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edged.bundle.loaded import open_bundle
from edged.bundle.plans import INDEX, STEP, WINDOWS, ensure_plans
from edged.bundle.writer import write_contents
from edged.errors import BundleError
from tests.support.bundles import make_bundle


def test_plans_are_built_once_and_hold_every_form(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")
    first = asyncio.run(ensure_plans(bundle, tmp_path / "cache"))
    inode = first.stat().st_ino
    assert asyncio.run(ensure_plans(bundle, tmp_path / "cache")) == first
    assert first.stat().st_ino == inode, "an intact directory is not built again"
    assert {entry.name for entry in first.iterdir()} == {STEP, *WINDOWS.values(), INDEX}
    assert (first / STEP).read_bytes() == bundle.read("model.onnx")
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [first.name], "nothing temporary is left"


def test_a_damaged_plan_is_built_again(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")
    plans = asyncio.run(ensure_plans(bundle, tmp_path / "cache"))
    whole = (plans / WINDOWS["scan"]).read_bytes()
    (plans / WINDOWS["scan"]).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    asyncio.run(ensure_plans(bundle, tmp_path / "cache"))
    assert (plans / WINDOWS["scan"]).read_bytes() == whole
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [plans.name]


def test_concurrent_callers_get_the_same_directory(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")

    async def all_at_once() -> list[Path]:
        return await asyncio.gather(*(ensure_plans(bundle, tmp_path / "cache") for _ in range(3)))

    assert len(set(asyncio.run(all_at_once()))) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_graph_that_is_not_acceptable_is_refused_with_its_reason(tmp_path: Path) -> None:
    good = make_bundle(tmp_path / "dense")
    contents = {name: good.read(name) for name in good.manifest.files} | {"model.onnx": b"\x00not onnx"}
    bad = write_contents(tmp_path / "bad", good.manifest, contents)
    assert open_bundle(bad.path).digest == bad.digest, "the bytes are as the manifest says; only the graph is wrong"
    with pytest.raises(BundleError, match="not an ONNX file"):
        asyncio.run(ensure_plans(bad, tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == [] if (tmp_path / "cache").exists() else True
