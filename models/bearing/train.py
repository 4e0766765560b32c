"""Train the ANN behind ``bearing``: write ``ann.onnx`` and ``across_sizes.json``. Needed only to change the model.

    python3 -m venv .venv-train
    .venv-train/bin/pip install -r models/requirements-train.txt
    EDGED_DATA=… .venv-train/bin/python -m models.bearing.train
    EDGED_DATA=… python -m models.bearing.make

A plain ReLU network with BatchNorm over time, written as a 2-D convolution of height 1; strides instead of pooling keep
every input of a layer behind the first a spike. Loudness and sign are varied at random, so that the network does not
learn how loud each of ten recordings is. Nothing is chosen on the test part: the last weights are kept.

``across_sizes.json`` is the harder question: how three more networks, which never saw a fault of one size, name the
faults of that size. One thread and fixed seeds; another version of torch gives other weights of the same quality. Takes
some two minutes on one core.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]  # lives in the training environment only
import torch.nn.functional as functional  # type: ignore[import-not-found]  # as above
from torch import nn

from models.bearing import across, data
from models.torch_export import exported

OUT = Path(__file__).parent / "ann.onnx"

_SEED = 0
_EPOCHS, _BATCH, _RATE, _DECAY = 15, 64, 3e-3, 1e-2
_HOP = 128  # samples between two windows that train; those that judge do not overlap
_GAIN = 2.0  # loudness: half to double
_NOISE = 0.01  # g

_LAYERS = (  # channels in and out, kernel, stride, padding
    (1, 16, 32, 8, 12),
    (16, 32, 8, 4, 2),
    (32, 64, 4, 4, 0),
    (64, 64, 4, 2, 1),
)


def network() -> Any:
    """1x1x1024 samples → 16 channels x 128 → 32 x 32 → 64 x 8 → 64 x 4 → 4 logits; 31 k parameters."""
    layers: list[Any] = []
    for inside, outside, kernel, stride, pad in _LAYERS:
        layers += [
            nn.Conv2d(inside, outside, (1, kernel), (1, stride), (0, pad), bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4, len(data.LABELS)))


def varied(windows: Any, random: Any) -> Any:
    """The windows louder or softer, half of them upside down, with a little noise."""

    def uniform() -> Any:
        return torch.rand(len(windows), 1, 1, 1, generator=random)

    gain = torch.exp((uniform() * 2 - 1) * math.log(_GAIN)) * torch.where(uniform() < 0.5, -1.0, 1.0)
    return windows * gain + torch.randn(windows.shape, generator=random) * _NOISE


def fit(part: tuple[data.Signal, data.Labels]) -> Any:
    """A network that was trained with AdamW and one learning-rate cycle."""
    torch.manual_seed(_SEED)
    model, (windows, labels) = network(), tensors(part)
    random = torch.Generator().manual_seed(_SEED + 1)
    steps = len(windows) // _BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_EPOCHS * steps)
    model.train()
    for _ in range(_EPOCHS):
        order = torch.randperm(len(windows), generator=random)
        for batch in order[: steps * _BATCH].split(_BATCH):
            optimizer.zero_grad()
            logits = model(varied(windows[batch], random))
            functional.cross_entropy(logits, labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    return model


def right(model: Any, part: tuple[data.Signal, data.Labels]) -> tuple[int, int]:
    """How many windows are named rightly, and how many there are."""
    windows, labels = tensors(part)
    with torch.no_grad():
        return int((model(windows).argmax(1) == labels).sum()), len(labels)


def tensors(part: tuple[data.Signal, data.Labels]) -> tuple[Any, Any]:
    """Windows (N, 1, 1, WINDOW) and labels, as torch wants them."""
    windows, labels = part
    return torch.tensor(windows)[:, None], torch.tensor(labels)


def across_sizes() -> list[across.HeldOut]:
    """How a network names faults of a size that it never saw, size by size."""
    found = []
    for size in data.SIZES:
        others = tuple(other for other in data.SIZES if other != size)
        model = fit(data.samples("train", others, _HOP))
        named, count = right(model, data.samples("all", (size,), normal=False))
        print(f"size {size:2}: {named} of {count} faults named by a network that saw {others}", flush=True)
        found.append(across.HeldOut(size=size, windows=count, right=named))
    return found


def main() -> None:
    """Train, print how it does, write ``ann.onnx`` and ``across_sizes.json``."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = fit(data.samples("train", hop=_HOP))
    for which in ("train", "test"):
        print(f"{which}: {'{} of {}'.format(*right(model, data.samples(which)))}", flush=True)
    OUT.write_bytes(exported(model, (1, 1, 1, data.WINDOW), "vibration").SerializeToString(deterministic=True))
    print(f"wrote {OUT.name}, {OUT.stat().st_size} bytes, {sum(p.numel() for p in model.parameters())} parameters")
    across.write(across_sizes())


if __name__ == "__main__":
    main()
