"""Train the ANN behind ``spikeformer-digits``, write it to ``ann.onnx``. Needed only to change the model.

    python3 -m venv .venv-train
    .venv-train/bin/pip install -r models/requirements-train.txt
    .venv-train/bin/python -m models.spikeformer_digits.train

An ordinary pre-norm ViT with GELU, exported by PyTorch's own exporter, because that is what people bring to the
converter. Nothing is chosen on the held-out images: the last weights are kept, and the held-out accuracy is only
printed. One thread and fixed seeds; another version of torch gives other weights of the same quality. Takes two
minutes on one core.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import onnx
import torch  # type: ignore[import-not-found]  # lives in the training environment only
import torch.nn.functional as functional  # type: ignore[import-not-found]  # as above
from torch import nn

from models.digits import data
from models.digits.train import augment

OUT = Path(__file__).parent / "ann.onnx"

_SEED = 0
_EPOCHS = 300
_BATCH = 64
_OPSET = 18  # the oldest that the exporter writes without converting
_WIDTH = 32
_HEADS = 2
_DEPTH = 2
_PATCH = 2


class Attention(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Self-attention, written out: softmax(q k' / sqrt(d)) v."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Any) -> Any:
        """Tokens (B, 16, 32) → the same shape."""
        batch, tokens, width = x.shape
        heads = self.qkv(x).reshape(batch, tokens, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        weights = (query @ key.transpose(-2, -1) * (width // _HEADS) ** -0.5).softmax(dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):  # type: ignore[misc]  # as above
    """Attention and a GELU network, each behind a norm and beside a residual path."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(_WIDTH), Attention()
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, 2 * _WIDTH), nn.GELU(), nn.Linear(2 * _WIDTH, _WIDTH))

    def forward(self, x: Any) -> Any:
        """Tokens (B, 16, 32) → the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):  # type: ignore[misc]  # as above
    """1x8x8 image of 0..1 → 16 patches of 2x2 → two blocks of width 32 → their mean → 10 logits; 18 k weights."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, _WIDTH, _PATCH, _PATCH)
        self.positions = nn.Parameter(torch.randn(1, 16, _WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(_DEPTH)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, 10)

    def forward(self, image: Any) -> Any:
        """Images (B, 1, 8, 8) → logits (B, 10)."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def fit(model: Any, images: Any, labels: Any) -> None:
    """Train in place with AdamW and one learning-rate cycle."""
    random = torch.Generator().manual_seed(_SEED)
    steps = len(images) // _BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=5e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=_EPOCHS * steps)
    model.train()
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images), generator=random)
        for batch in order[: steps * _BATCH].split(_BATCH):
            optimizer.zero_grad()
            logits = model(augment(images[batch], random))
            functional.cross_entropy(logits, labels[batch], label_smoothing=0.05).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: Any) -> onnx.ModelProto:
    """PyTorch's export, without what it says about the machine that it was made on."""
    file = io.BytesIO()
    program = torch.onnx.export(
        model,
        (torch.zeros(1, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    program.save(file)
    exported = onnx.load_model_from_string(file.getvalue())
    for part in (exported, exported.graph, *exported.graph.node, *exported.graph.value_info, *exported.graph.input):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for tensor in (*exported.graph.output, *exported.graph.initializer):
        del tensor.metadata_props[:]
        tensor.ClearField("doc_string")
    onnx.checker.check_model(exported, full_check=True)
    return exported


def _tensors(part: tuple[data.Images, data.Labels]) -> tuple[Any, Any]:
    images, labels = part
    return torch.tensor(images, dtype=torch.float32)[:, None] / data.WHITE, torch.tensor(labels)


def main() -> None:
    """Train, print the accuracy of each split, write ``ann.onnx``."""
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    model = Vit()
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
