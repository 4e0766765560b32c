"""The engine ``tensorrt-rtx``: TensorRT for RTX, all in float32."""

from __future__ import annotations

from edged.engines.worker.tensorrt.engine import TensorRt


class Engine(TensorRt):
    """``tensorrt-rtx``."""

    package = "tensorrt_rtx"
    precision = "f32"
