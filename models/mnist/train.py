"""Train the ANN behind ``mnist``; write it to ``ann.onnx``. Needed only to change the model: the result is committed.

    python3 -m venv .venv-train
    .venv-train/bin/pip install -r models/requirements-train.txt
    EDGED_DATA=… .venv-train/bin/python -m models.mnist.train

A plain ReLU network with BatchNorm and max pooling, exported as anybody would do it. Nothing is chosen on the test
images: the last weights are kept, and the test accuracy is only printed. One thread and fixed seeds; another version of
torch gives other weights of the same quality. Takes some ten minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]  # lives in the training environment only
import torch.nn.functional as functional  # type: ignore[import-not-found]  # as above
from torch import nn

from models.mnist import data
from models.torch_export import exported

OUT = Path(__file__).parent / "ann.onnx"

_SEED = 0
_EPOCHS = 6
_BATCH = 100
_RATE = 8e-3
_SHIFT = 2  # pixels, each way


def network() -> Any:
    """1x28x28 image of 0..1 → 16 channels, pooled → twice 32, pooled → 64 channels 7x7 → 10 logits; 64 k parameters."""
    layers: list[Any] = []
    for inside, outside, pooled in ((1, 16, True), (16, 32, False), (32, 32, True), (32, 64, False)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 7 * 7, 10))


def fit(model: Any, images: Any, labels: Any) -> None:
    """Train in place with AdamW and one learning-rate cycle; each batch is shifted by up to two pixels."""
    random = torch.Generator().manual_seed(_SEED)
    steps = len(images) // _BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_EPOCHS * steps)
    model.train()
    for epoch in range(_EPOCHS):
        order = torch.randperm(len(images), generator=random)
        total = 0.0
        for batch in order[: steps * _BATCH].split(_BATCH):
            down, right = (torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=random)).tolist()
            optimizer.zero_grad()
            logits = model(torch.roll(images[batch], (down, right), dims=(2, 3)))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            loss.backward()
            total += loss.item()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {_EPOCHS}: loss {total / steps:.4f}", flush=True)
    model.eval()


def tensors(part: tuple[data.Images, data.Labels]) -> tuple[Any, Any]:
    """Images (N, 1, 28, 28) of 0..1 and labels, as torch wants them."""
    images, labels = part
    return torch.tensor(images, dtype=torch.float32)[:, None] / data.WHITE, torch.tensor(labels)


def main() -> None:
    """Train, print the accuracy of each part, write ``ann.onnx``."""
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    model = network()
    fit(model, *tensors(data.train()))
    for part in (data.calibration, data.test):
        images, labels = tensors(part())
        with torch.no_grad():
            guesses = torch.cat([model(batch).argmax(1) for batch in images.split(1000)])
        print(f"{part.__name__:12} {(guesses == labels).float().mean().item():.4f} of {len(labels)}")
    OUT.write_bytes(exported(model, (1, 1, 28, 28), "image").SerializeToString(deterministic=True))
    print(f"wrote {OUT.name}, {OUT.stat().st_size} bytes, {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
