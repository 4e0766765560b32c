"""``python -m tests.support.tensorrt_peer WINDOW.onnx INPUT.npz``: ONNX Runtime with CUDA on a window plan, timed.

One line of JSON: the best and the median microseconds of a run, or why it cannot be had. For where onnxruntime-gpu is.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np

ROUNDS = 200


def main() -> None:
    """Time it."""
    try:
        import onnxruntime as ort  # type: ignore[import-untyped]  # ships no stubs
    except ImportError as error:
        print(json.dumps({"why": str(error)}))
        return
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        print(json.dumps({"why": "this ONNX Runtime has no CUDA"}))
        return
    session = ort.InferenceSession(sys.argv[1], providers=["CUDAExecutionProvider"])
    with np.load(sys.argv[2]) as stored:
        feeds = {name: stored[name] for name in stored.files}
    taken = []
    for _ in range(ROUNDS + 20):
        began = time.perf_counter()
        session.run(None, feeds)
        taken.append(1e6 * (time.perf_counter() - began))
    print(json.dumps({"best": min(taken[20:]), "median": statistics.median(taken[20:]), "version": ort.__version__}))


if __name__ == "__main__":
    main()
