"""The engine ``tensorrt``: all in float32."""

from __future__ import annotations

from edged.engines.worker.tensorrt.engine import TensorRt


class Engine(TensorRt):
    """``tensorrt``."""

    package = "tensorrt"
    precision = "f32"
