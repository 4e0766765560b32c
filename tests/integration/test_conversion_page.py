"""The ten minutes of ``docs/conversion.md``, command by command, with a network that learned without a framework.

Two blocks are not run as they stand: what needs pip or torch. The ANN that ``torch.onnx.export`` would write is written
here: a convolution that nobody trained, and scores that least squares fitted behind it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.support.tree import ROOT

PAGE = (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8")
TEN_MINUTES = PAGE[PAGE.index("## Ten minutes") : PAGE.index("## When the network is refused")]
Pairs = list[tuple[Image.Image, int]]
CLASSES, SIDE = 3, 28


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEN_MINUTES, re.MULTILINE | re.DOTALL)


def pictures(count: int, seed: int) -> Pairs:
    """Noisy bars, lying, standing or crossed, somewhere in the image: sorted by class, as data sets often are."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        label = index * CLASSES // count
        image = random.integers(0, 60, (SIDE, SIDE))
        row, column = random.integers(4, SIDE - 6, 2)
        if label != 1:
            image[row : row + 3, 2:-2] += 150
        if label != 0:
            image[2:-2, column : column + 3] += 150
        made.append((Image.fromarray(np.minimum(image, 255).astype(np.uint8)), label))
    return made


def network(train: Pairs) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, Flatten, Gemm; the same signature as the exported network of the page."""
    random = np.random.default_rng(0)
    edges = random.normal(0, 0.4, (8, 1, 3, 3)).astype(np.float32)
    bias = np.zeros(8, np.float32)
    features = _features(edges, bias)
    images = np.stack([np.asarray(image, np.float32)[np.newaxis] / 255 for image, _ in train])
    labels = np.array([label for _, label in train])
    found = _run(features, images)
    square = found.T @ found + 1e-1 * np.eye(found.shape[1])
    weight = np.linalg.solve(square, found.T @ np.eye(CLASSES)[labels])
    graph = features.graph
    graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "weight"))
    graph.node.append(helper.make_node("Gemm", ["flat", "weight"], ["logits"], name="logits"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES]))
    return features


def _features(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["image", "edges", "bias"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("MaxPool", ["relu"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("flat", TensorProto.FLOAT, [1, 8 * 49])],
        [numpy_helper.from_array(weight, "edges"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model: onnx.ModelProto, images: NDArray[np.floating]) -> NDArray[np.float64]:
    import onnxruntime  # type: ignore[import-untyped]  # it ships no types

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate(
        [session.run(None, {"image": image[np.newaxis].astype(np.float32)})[0] for image in images]
    ).astype(np.float64)


class Shell:
    """Runs the lines of the page in one folder; one that ends in ``&`` stays until the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "default"}
        self._kept: list[subprocess.Popen[bytes]] = []

    def run(self, block: str) -> str:
        """What the lines printed. Fails at the first that fails."""
        said = []
        for line in block.strip().replace("\\\n", " ").splitlines():
            if line.endswith("&"):
                command = ["bash", "-c", f"exec {line.rstrip('& ')}"]
                with (self.folder / "kept.log").open("wb") as log:
                    self._kept.append(subprocess.Popen(command, cwd=self.folder, env=self._environment, stderr=log))
                continue
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=self.folder,
                env=self._environment,
                check=False,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            said += [done.stdout, done.stderr]
        return "".join(said)

    def close(self) -> None:
        for process in self._kept:
            process.send_signal(signal.SIGTERM)
        for process in self._kept:
            assert process.wait(30) == 0


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    opened = Shell(tmp_path)
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.timeout(300)  # ten seconds of work, but several processes start
def test_the_ten_minutes_lead_from_a_network_to_a_result(shell: Shell) -> None:
    train, test = pictures(300, seed=1), pictures(90, seed=2)
    (_, save_images), (edged_toml,) = blocks("python"), blocks("toml")
    convert, prove, run = blocks("sh")
    onnx.save(network(train), shell.folder / "my_model.onnx")
    script = f"train, test = PAIRS\nimport os\nos.chdir({str(shell.folder)!r})\n{save_images}"
    before = Path.cwd()
    try:
        exec(compile(script, "docs/conversion.md", "exec"), {"PAIRS": (train, test)})
    finally:
        os.chdir(before)

    said = shell.run(convert)
    report = json.loads((shell.folder / "my_model-bundle" / "report.json").read_text())
    assert (report["samples"], report["calibration_samples"], report["timesteps"]) == (90, 300, 8)
    assert report["ann"]["accuracy"] > 0.95  # it did learn, and preprocessing is what it learned with
    assert report["spiking"]["accuracy"] > report["ann"]["accuracy"] - 0.05
    assert "µs, one thread of this machine" in said
    assert "note: the network" not in said

    assert "is a valid bundle" in shell.run(prove)

    # a free port: another daemon may sit on the default one
    (shell.folder / "edged.toml").write_text(edged_toml + "\n[http]\nport = 0\n")
    *lines, results = run.strip().splitlines()
    shell.run("\n".join(lines))
    assert '"label":"0"' in _eventually(shell, results)  # the first of the held-out images lies there


def _eventually(shell: Shell, command: str) -> str:
    """What the command prints as soon as the daemon, which starts meanwhile, has stored a result."""
    deadline = time.monotonic() + 60
    said = ""
    while time.monotonic() < deadline:
        try:
            said = shell.run(command)
        except AssertionError as refused:
            said = str(refused)
        if "000000" in said:
            return said
        time.sleep(0.2)
    raise AssertionError(f"{said}\n{(shell.folder / 'kept.log').read_text()}")
