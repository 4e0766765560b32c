"""Small random vision transformers in ONNX, as different exporters spell them, and NumPy forms of what they use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.support.anns import AnnWriter

Doubles = NDArray[np.float64]

SHAPE = (1, 8, 8)
TOKENS, WIDTH, HEADS, CLASSES = 4, 12, 2, 5
SPELLINGS = ("plain", "packed", "merged", "classed")


class VitWriter(AnnWriter):
    """Adds the parts of a transformer to a graph."""

    def dense(self, value: str, inside: int, outside: int) -> str:
        made = self.node("MatMul", value, self.weight(self.random.normal(0, 1 / np.sqrt(inside), (inside, outside))))
        return self.node("Add", made, self.weight(self.random.normal(0, 0.1, outside)))

    def layer_norm(self, value: str, width: int = WIDTH) -> str:
        scale, bias = self.random.uniform(0.7, 1.3, width), self.random.normal(0, 0.1, width)
        return self.node("LayerNormalization", value, self.weight(scale), self.weight(bias), axis=-1, epsilon=1e-5)

    def number(self, value: float) -> str:
        return self.weight(np.asarray(value))

    def shape(self, value: str, *sizes: int) -> str:
        return self.node("Reshape", value, self.weight(np.array(sizes, np.int64)))

    def gelu(self, value: str) -> str:
        bent = self.node("Erf", self.node("Div", value, self.number(math.sqrt(2))))
        half = self.node("Mul", value, self.node("Add", bent, self.number(1.0)))
        return self.node("Mul", half, self.number(0.5))

    def attend(self, query: str, key: str, value: str) -> str:
        """Heads (B, H, N, d) → (B, H, N, d); the key comes transposed, (B, H, d, N)."""
        scores = self.node("Mul", self.node("MatMul", query, key), self.number((WIDTH / HEADS) ** -0.5))
        return self.node("MatMul", self.node("Softmax", scores, axis=-1), value)

    def embedding(self) -> str:
        """Patches of 4x4 by a Conv, (B, 4, 12)."""
        patches = self.conv("x", (WIDTH, 1, 4, 4), bias=True, strides=[4, 4])
        tokens = self.node("Transpose", self.shape(patches, 0, WIDTH, TOKENS), perm=[0, 2, 1])
        return self.node("Add", tokens, self.weight(self.random.normal(0, 0.3, (1, TOKENS, WIDTH))))

    def with_class(self, tokens: str) -> str:
        """A constant token in front, repeated for each sample as exporters do it: with the shape at run time."""
        count = self.node("Slice", self.node("Shape", "x"), *(self.weight(np.array([n], np.int64)) for n in (0, 1)))
        rest = self.weight(np.array([1, WIDTH], np.int64))
        shape = self.node("Concat", count, rest, axis=0)
        token = self.node("Expand", self.weight(self.random.normal(0, 1, (1, 1, WIDTH))), shape)
        return self.node("Concat", token, tokens, axis=1)

    def plain_attention(self, x: str, tokens: int = TOKENS) -> str:
        """Three matrices; heads by Reshape and Transpose, the batch always in front."""
        parts = [self.shape(self.dense(x, WIDTH, WIDTH), 0, tokens, HEADS, WIDTH // HEADS) for _ in range(3)]
        query, key, value = (
            self.node("Transpose", part, perm=perm)
            for part, perm in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        merged = self.node("Transpose", self.attend(query, key, value), perm=[0, 2, 1, 3])
        return self.dense(self.shape(merged, 0, tokens, WIDTH), WIDTH, WIDTH)

    def packed_attention(self, x: str) -> str:
        """One matrix for all three; they move in front of the batch and are taken apart by Gather."""
        packed = self.shape(self.dense(x, WIDTH, 3 * WIDTH), -1, TOKENS, 3, HEADS, WIDTH // HEADS)
        moved = self.node("Transpose", packed, perm=[2, 0, 3, 1, 4])
        query, key, value = (self.node("Gather", moved, self.weight(np.array(n, np.int64)), axis=0) for n in range(3))
        turned = self.node("Transpose", key, perm=[0, 1, 3, 2])
        merged = self.node("Transpose", self.attend(query, turned, value), perm=[0, 2, 1, 3])
        return self.dense(self.shape(merged, -1, TOKENS, WIDTH), WIDTH, WIDTH)

    def merged_attention(self, x: str) -> str:
        """Tokens in front of the batch, and heads on one axis with it, as PyTorch's own module has it."""
        packed = self.dense(self.node("Transpose", x, perm=[1, 0, 2]), WIDTH, 3 * WIDTH)
        parts = []
        for number in range(3):
            bounds = [self.weight(np.array([n], np.int64)) for n in (number * WIDTH, number * WIDTH + WIDTH, 2)]
            heads = self.shape(self.node("Slice", packed, *bounds), TOKENS, -1, WIDTH // HEADS)
            parts.append(self.node("Transpose", heads, perm=[1, 0, 2]))
        turned = self.node("Transpose", parts[1], perm=[0, 2, 1])
        merged = self.node("Transpose", self.attend(parts[0], turned, parts[2]), perm=[1, 0, 2])
        flat = self.shape(merged, -1, WIDTH)
        return self.node("Transpose", self.shape(self.dense(flat, WIDTH, WIDTH), TOKENS, -1, WIDTH), perm=[1, 0, 2])


def vit(spelling: str = "plain", seed: int = 0, batch: str | int = "B") -> onnx.ModelProto:
    """A pre-norm ViT of one block: images (B, *SHAPE) → logits (B, CLASSES)."""
    writer = VitWriter(seed)
    tokens = writer.embedding()
    if spelling == "classed":
        tokens = writer.with_class(tokens)
        attended = writer.plain_attention(writer.layer_norm(tokens), TOKENS + 1)
    else:
        attention = {"plain": writer.plain_attention, "packed": writer.packed_attention}
        attended = attention.get(spelling, writer.merged_attention)(writer.layer_norm(tokens))
    tokens = writer.node("Add", tokens, attended)
    hidden = writer.gelu(writer.dense(writer.layer_norm(tokens), WIDTH, 2 * WIDTH))
    tokens = writer.layer_norm(writer.node("Add", tokens, writer.dense(hidden, 2 * WIDTH, WIDTH)))
    if spelling == "classed":
        pooled = writer.node("Gather", tokens, writer.weight(np.array(0, np.int64)), axis=1)
    else:
        pooled = writer.node("ReduceMean", tokens, axes=[1], keepdims=0)
    head = writer.weight(writer.random.normal(0, 1, (WIDTH, CLASSES)))
    out = writer.node("Gemm", pooled, head, writer.weight(writer.random.normal(0, 0.1, CLASSES)), name="logits")
    return writer.model(out, SHAPE, CLASSES, batch)


def images(count: int, seed: int = 1) -> NDArray[np.float32]:
    """Random inputs of 0 to 1, (N, *SHAPE)."""
    return np.random.default_rng(seed).random((count, *SHAPE), dtype=np.float32)


def layer_norm(x: Doubles, scale: Any, bias: Any, epsilon: float = 1e-5) -> Doubles:
    """Layer normalisation over the last axis, from its definition."""
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias)


def softmax(x: Doubles) -> Doubles:
    """Over the last axis."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def gelu(x: Doubles) -> Doubles:
    """x · Φ(x), with the standard library's erf."""
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))
