"""A trained network as ``torch.onnx.export`` writes it, without its notes on the machine that wrote it.

Only for the training environment: imports torch.
"""

from __future__ import annotations

import io
from typing import Any

import onnx
import torch  # type: ignore[import-not-found]  # lives in the training environment only

OPSET = 18  # the exporter's own


def exported(model: Any, shape: tuple[int, ...], name: str) -> onnx.ModelProto:
    """The network with one input ``name`` of ``shape`` and one output ``logits``."""
    file = io.BytesIO()
    program = torch.onnx.export(
        model,
        (torch.zeros(*shape),),
        input_names=[name],
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
        optimize=False,  # which would fold BatchNorm: that is the converter's work
    )
    program.save(file)
    made = onnx.load_model_from_string(file.getvalue())
    del made.metadata_props[:]
    for part in (made.graph, *made.graph.node, *made.graph.value_info, *made.graph.initializer):
        del part.metadata_props[:]
    for part in (*made.graph.node, made.graph, made):
        part.doc_string = ""
    return made
