"""Runs graphs on stock ONNX Runtime, as the reference while golden data is made and bundles are verified.

The daemon's engines live elsewhere and never come through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # the wheel ships no types
from numpy.typing import NDArray

from edged.errors import BundleError

Floats = NDArray[Any]


class Stock:
    """One graph in one session: one thread, CPU. ``optimized`` switches all of the runtime's rewriting on or off."""

    def __init__(self, model: onnx.ModelProto, *, optimized: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # warnings about our own graphs are not for users
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's errors share no base class of their own
            raise BundleError(f"stock ONNX Runtime cannot load the graph: {_first_line(error)}") from None
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Floats]) -> dict[str, Floats]:
        """All outputs by name."""
        return self.pick(self.outputs, feeds)

    def pick(self, names: Sequence[str], feeds: Mapping[str, Floats]) -> dict[str, Floats]:
        """Some outputs by name."""
        try:
            results = self._session.run(list(names), dict(feeds))
        except Exception as error:  # as above
            raise BundleError(f"stock ONNX Runtime cannot run the graph: {_first_line(error)}") from None
        return {name: np.asarray(value) for name, value in zip(names, results, strict=True)}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
