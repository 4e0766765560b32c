"""The engine ``tensorrt-fp16``: sums with weights in float16, from TensorRT 10 on."""

from __future__ import annotations

from edged.engines.worker.tensorrt.engine import TensorRt


class Engine(TensorRt):
    """``tensorrt-fp16``."""

    package = "tensorrt"
    precision = "fp16"
