"""Train the ANN behind ``digits``, write it to ``ann.onnx``. Needed only to change the model: the result is committed.

    python3 -m venv .venv-train
    .venv-train/bin/pip install -r models/requirements-train.txt
    .venv-train/bin/python -m models.digits.train

A plain ReLU network with BatchNorm, because that is what people bring to the converter. Strides instead of pooling keep
every input of a layer behind the first a binary spike. Nothing is chosen on the held-out images: the last weights are
kept, and the held-out accuracy is only printed. One thread and fixed seeds; another version of torch gives other
weights of the same quality. Takes about a minute on one core.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch  # type: ignore[import-not-found]  # lives in the training environment only
import torch.nn.functional as functional  # type: ignore[import-not-found]  # as above
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.digits import data

OUT = Path(__file__).parent / "ann.onnx"

_SEED = 0
_EPOCHS = 250
_BATCH = 64
_OPSET = 17  # what every engine of the product reads
_IR_VERSION = 8


def network() -> Any:
    """1x8x8 image of 0..1 → 16 channels 8x8 → 32 channels 4x4 → 64 channels 2x2 → 10 logits; 26 k parameters."""
    layers: list[Any] = []
    for inside, outside, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def augment(images: Any, random: Any) -> Any:
    """Small rotations (15 degrees), zooms (10 %), shifts (one pixel) and elastic bends of images (N, 1, 8, 8)."""
    count = len(images)

    def uniform(*shape: int) -> Any:
        return torch.rand(count, *shape, generator=random) * 2 - 1

    angle, zoom = uniform() * math.radians(15), 1 + uniform() * 0.1
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = torch.cos(angle) * zoom
    affine[:, 1, 0] = torch.sin(angle) * zoom
    affine[:, 0, 1] = -affine[:, 1, 0]
    affine[:, :, 2] = uniform(2) * 0.25  # in half widths: one of eight pixels
    grid = functional.affine_grid(affine, images.shape, align_corners=False)
    bend = functional.interpolate(uniform(2, 4, 4) * 0.15, size=(8, 8), mode="bicubic", align_corners=False)
    return functional.grid_sample(images, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def fit(model: Any, images: Any, labels: Any) -> None:
    """Train in place with AdamW and one learning-rate cycle."""
    random = torch.Generator().manual_seed(_SEED)
    steps = len(images) // _BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=_EPOCHS * steps)
    model.train()
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images), generator=random)
        for batch in order[: steps * _BATCH].split(_BATCH):
            optimizer.zero_grad()
            logits = model(augment(images[batch], random))
            functional.cross_entropy(logits, labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: Any) -> onnx.ModelProto:
    """Write the layers as they are, BatchNorm included: folding it is the converter's work."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    value = "image"
    for index, layer in enumerate(model):
        op, tensors, attributes = _onnx_layer(layer)
        names = [f"{op.lower()}{index}.{name}" for name in tensors]
        weights += [
            numpy_helper.from_array(tensor.detach().numpy().astype(np.float32), name)
            for name, tensor in zip(names, tensors.values(), strict=True)
        ]
        out = "logits" if index == len(model) - 1 else f"{op.lower()}{index}"
        nodes.append(helper.make_node(op, [value, *names], [out], name=f"{op.lower()}{index}", **attributes))
        value = out
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 10])],
        weights,
    )
    exported = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(exported, full_check=True)
    return exported


def _onnx_layer(layer: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Operator, tensors and attributes of one torch layer."""
    match layer:
        case nn.Conv2d():
            pads = [*layer.padding, *layer.padding]
            window = {"kernel_shape": list(layer.kernel_size), "strides": list(layer.stride), "pads": pads}
            return "Conv", {"weight": layer.weight}, window
        case nn.BatchNorm2d():
            moments = {"mean": layer.running_mean, "var": layer.running_var}
            return "BatchNormalization", {"scale": layer.weight, "bias": layer.bias, **moments}, {"epsilon": layer.eps}
        case nn.Linear():
            return "Gemm", {"weight": layer.weight, "bias": layer.bias}, {"transB": 1}
        case nn.Flatten():
            return "Flatten", {}, {"axis": 1}
        case nn.ReLU():
            return "Relu", {}, {}
    raise TypeError(f"no ONNX form for {layer}")


def _tensors(part: tuple[data.Images, data.Labels]) -> tuple[Any, Any]:
    images, labels = part
    return torch.tensor(images, dtype=torch.float32)[:, None] / data.WHITE, torch.tensor(labels)


def main() -> None:
    """Train, print the accuracy of each split, write ``ann.onnx``."""
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    model = network()
    fit(model, *_tensors(data.train()))
    for part in (data.train, data.calibration, data.held_out):
        images, labels = _tensors(part())
        with torch.no_grad():
            right = (model(images).argmax(1) == labels).float().mean().item()
        print(f"{part.__name__:12} {right:.4f} of {len(labels)}")
    OUT.write_bytes(export(model).SerializeToString(deterministic=True))
    print(f"wrote {OUT.name}, {OUT.stat().st_size} bytes, {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
