"""The engine ``tensorrt-int8``: spikes and int8 weights in int8."""

from __future__ import annotations

from edged.engines.worker.tensorrt.engine import TensorRt


class Engine(TensorRt):
    """``tensorrt-int8``."""

    package = "tensorrt"
    precision = "int8"
