"""The commands of ``edged bundle``: what they print and how they exit."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from edged.bundle.cli import add_commands
from edged.bundle.graph.builder import StepBuilder
from edged.bundle.graph.checks import check_step_graph
from edged.bundle.graph.functions import function_bytes
from edged.bundle.loaded import Bundle
from edged.bundle.writer import write_bundle, write_contents
from edged.errors import BundleError, ConfigError
from edged.ports import Engine
from tests.support.bundles import make_bundle
from tests.support.mutants import mutants
from tests.support.stock_engine import StockEngine

OPENED: list[tuple[str, int]] = []


@contextlib.asynccontextmanager
async def open_engine(name: str, bundle: Bundle, max_batch: int) -> AsyncIterator[Engine]:
    OPENED.append((name, max_batch))
    if name != "onnxruntime":
        raise ConfigError(f"no engine {name!r}")
    yield StockEngine(check_step_graph(bundle.read("model.onnx"), bundle.spec), bundle.spec, max_batch=max_batch)


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(), open_engine)
    parsed = parser.parse_args(["bundle", *map(str, arguments)])
    code: int = parsed.func(parsed)
    return code


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "conv", kind="conv")


def test_pack_writes_one_file_that_every_command_takes(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = tmp_path / "conv.tar"
    assert run("pack", bundle.path, tar) == 0
    assert capsys.readouterr().out.startswith(
        f"{tar}: test-conv@1.0.0, {tar.stat().st_size} bytes, digest {bundle.digest}"
    )
    assert [run("info", tar), run("verify", tar), run("selftest", tar)] == [0, 0, 0]


def test_info_describes_the_model(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", bundle.path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test-conv@1.0.0: A model with random weights"
    assert lines[1] == f"digest     {bundle.digest}"
    assert "input      image float32 [1, 8, 8], constant" in lines
    assert "states     3 (IF, LI, LIF)" in lines


def test_info_json_holds_the_digest_and_the_whole_manifest(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", bundle.path, "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert table.pop("digest") == bundle.digest
    assert table == json.loads(bundle.manifest_bytes())


def test_verify_says_what_it_checked(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", bundle.path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["files", "ok:"], ["graph", "ok:"], ["golden", "ok:"]]


def test_verify_refuses_a_graph_that_opening_cannot_judge(bundle: Bundle, tmp_path: Path) -> None:
    b = StepBuilder()
    image = b.input("image", (1, 8, 8))
    graph = b.build(b.node("Gemm", b.node("Flatten", image), b.constant(np.ones((64, 4)))), 4)
    bad = write_bundle(tmp_path / "bad", manifest=bundle.manifest, model=graph.model, golden={}, report={}, card="")
    with pytest.raises(BundleError, match="inputs are not the manifest's"):
        run("verify", bad.path)


def test_verify_refuses_a_bundle_without_golden_data(bundle: Bundle, tmp_path: Path) -> None:
    model = check_step_graph(bundle.read("model.onnx"), bundle.spec)
    bad = write_bundle(tmp_path / "bad", manifest=bundle.manifest, model=model, golden={}, report={}, card="")
    with pytest.raises(BundleError, match="golden data has no format 1"):
        run("verify", bad.path)


def test_selftest_passes_the_choices_on_and_reports(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    OPENED.clear()
    assert run("selftest", bundle.path, "--engine", "onnxruntime", "--max-batch", 3) == 0
    assert OPENED == [("onnxruntime", 3)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split()[-1] for line in lines[:3]] == ["ok", "ok", "ok"]
    assert lines[-1] == "test-conv@1.0.0 proved itself on stock-unrolled"


def test_a_failed_selftest_exits_with_1_and_says_why(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model whose weights are not those that its golden data were made with."""
    model = check_step_graph(bundle.read("model.onnx"), bundle.spec)
    _, mutant = next(iter(mutants(model)))
    assert all(f.SerializeToString(deterministic=True) == function_bytes(f.name) for f in mutant.functions)
    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    bad = write_contents(tmp_path / "bad", bundle.manifest, contents | {"model.onnx": mutant.SerializeToString()})
    assert run("selftest", bad.path) == 1
    assert "FAILED" in capsys.readouterr().out
    assert run("selftest", bad.path, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert report["digest"] == bad.digest
    assert any(not check["passed"] for check in report["checks"])


def test_an_unknown_engine_is_the_callers_error(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="no engine 'abacus'"):
        run("selftest", bundle.path, "--engine", "abacus")


@pytest.mark.parametrize("command", ["info", "verify", "selftest"])
def test_a_path_that_is_no_bundle_is_an_error(tmp_path: Path, command: str) -> None:
    with pytest.raises(BundleError):
        run(command, tmp_path)
    with pytest.raises(BundleError):
        run(command, tmp_path / "nowhere")
