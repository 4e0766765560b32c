"""Constants of an ANN: initializers, ``Constant`` nodes, and whatever an exporter computes from nothing but those.

Exporters write shapes as little programs (Shape → Gather → Concat → Reshape) and zero biases as Expand; all of it is
known before the first image is. ``Shape`` of an activation counts as known too, for a batch of one: what such a shape
is used for must hold for every batch, which the operators check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

Shape = tuple[int, ...] | None

_MOST = 1 << 26  # numbers in one constant: 256 MiB of float32
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


class Constants:
    """Everything that is known without an image, by value name."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._opset = opset
        self._known: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}

    def __contains__(self, value: str) -> bool:
        return value in self._known

    def get(self, value: str) -> NDArray[Any] | None:
        """The array of a value; None where it depends on the image."""
        return self._known.get(value)

    def learn(self, node: onnx.NodeProto, names: Sequence[str], shapes: Mapping[str, Shape]) -> bool:
        """Compute a node's outputs if its inputs ``names`` are known; whether they were."""
        if node.domain not in ("", "ai.onnx") or any(a.type in _GRAPHS for a in node.attribute):
            return False
        if node.op_type == "Shape":
            return self._learn_shape(node, names[0], shapes)
        if node.op_type == "CastLike" and names[0] in self._known and names[1] not in self._known:
            self._known[node.output[0]] = self._known[names[0]].astype(np.float32)  # as all activations are
            return True
        given = [name for name in names if name]
        if any(name not in self._known for name in given) or node.op_type.startswith("Random"):
            return False
        if node.op_type == "Expand" and math.prod(int(size) for size in self._known[names[1]]) > _MOST:
            return False
        feeds = {own: self._known[name] for own, name in zip(node.input, names, strict=True) if name}
        try:
            found = ReferenceEvaluator(node, opsets={"": self._opset}).run(None, feeds)
        except Exception:  # whatever the reference cannot do is no constant, and is refused by its name
            return False
        self._known |= {name: np.asarray(array) for name, array in zip(node.output, found, strict=False) if name}
        return True

    def _learn_shape(self, node: onnx.NodeProto, name: str, shapes: Mapping[str, Shape]) -> bool:
        known = self._known.get(name)
        shape = known.shape if known is not None else shapes.get(name)
        if shape is None:
            return False
        bounds = {a.name: int(a.i) for a in node.attribute}
        self._known[node.output[0]] = np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)
        return True
