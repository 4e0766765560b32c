"""Builds ONNX graphs with TensorRT-RTX, or compiles and runs them with OpenVINO: one line of JSON a graph.

    BACKENDS/bin/python -m tests.bench.op_backends tensorrt-rtx|openvino FOLDER NAME …

``test_bench_op_backends`` runs it in an environment of its own, which is never one of the product's. FOLDER holds
``NAME.onnx`` and ``NAME.npz``: inputs ``in.*`` and what ONNX Runtime gave for them, ``out.*``. Before each graph its
name is printed, so that whoever reads knows which one took the process with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

LARGEST = 8  # of the batches that a plan is built for
CLOSE = 1e-4  # what another order of sums may do here; a flipped spike is off by tenths


def tensorrt_rtx(path: Path) -> str:
    """Parse and build, for a batch of 1 to LARGEST. A machine without a GPU can build, not run."""
    import tensorrt_rtx as trt  # type: ignore[import-not-found]  # lives in the backends' environment only

    said: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]  # as above
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                said.append(message)

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        return f"not parsed: {parser.get_error(0).desc()}"
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        shapes = [tuple(size if size >= 0 else batch for size in entry.shape) for batch in (1, 1, LARGEST)]
        profile.set_shape(entry.name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return f"not built: {said[0] if said else 'no reason given'}"
    return "ok"


def openvino(path: Path) -> str:
    """Compile for the CPU, run, and compare with ONNX Runtime."""
    import openvino as ov  # type: ignore[import-not-found]  # as above

    try:
        compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        return f"not compiled: {[line for line in str(error).splitlines() if line][-1]}"
    with np.load(path.with_suffix(".npz")) as stored:
        feeds = {name[3:]: stored[name] for name in stored.files if name.startswith("in.")}
        expected = {name[4:]: stored[name] for name in stored.files if name.startswith("out.")}
    found = compiled(feeds)
    off = max(float(np.abs(found[compiled.output(name)] - value).max()) for name, value in expected.items())
    if off > CLOSE:
        return f"wrong by {off:.1g}"
    return f"ok, off by {off:.1g}" if off else "ok, same bits"


BACKENDS: dict[str, Callable[[Path], str]] = {"tensorrt-rtx": tensorrt_rtx, "openvino": openvino}


def main() -> None:
    """One graph after the other."""
    backend, folder, *names = sys.argv[1:]
    for name in names:
        print(json.dumps({"graph": name}), flush=True)
        path = Path(folder) / f"{name}.onnx"
        onnx.checker.check_model(onnx.load(path), full_check=True)
        print(json.dumps({"graph": name, "result": BACKENDS[backend](path)}), flush=True)


if __name__ == "__main__":
    main()
