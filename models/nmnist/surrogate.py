"""The network of ``layers`` in plain torch, trained through time.

The neuron is the canonical graph's: ``u = decay·v + i; s = [u >= 1/2]; v = u - s``, zero at first. A step has no
gradient, so the backward pass takes a triangle around the threshold for it (Neftci, Mostafa and Zenke, *Surrogate
gradient learning in spiking neural networks*, 2019). Currents are normalised over batch and time (Zheng et al., *Going
deeper with directly-trained larger spiking neural networks*, 2021); ``folded`` moves that into the weights.

Time is the first axis, so that a step is one block of memory, and channels are the last in memory, which is faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]  # lives in the training environment only
import torch.nn.functional as functional  # type: ignore[import-not-found]  # as above
from numpy.typing import NDArray
from torch import nn

from models.nmnist.layers import DENSE_GRID, FEATURES, LAYERS, RESET, STRIDE, THRESHOLD


class SpikingNet(nn.Module):  # type: ignore[misc]  # torch has no types here
    """(B, classes) for event frames (T, B, polarities, height, width): the mean of what the dense layer makes."""

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(x.inputs, x.outputs, x.kernel, STRIDE, x.kernel // 2, bias=False) for x in LAYERS]
        self.convolutions = nn.ModuleList(convolutions).to(memory_format=torch.channels_last)
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer.outputs) for layer in LAYERS)
        self.dense = nn.Linear(FEATURES, classes)
        self._dropout = dropout

    def forward(self, frames: Any) -> Any:
        """Scores."""
        time = frames.shape[:2]
        spikes = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        for layer, convolution, norm in zip(LAYERS, self.convolutions, self.norms, strict=True):
            current = norm(convolution(spikes)).unflatten(0, time)
            spikes = _Fire.apply(current, layer.decay).flatten(0, 1)
        rates = spikes.unflatten(0, time).mean(0).flatten(1)  # the dense layer is linear: mean first
        return self.dense(functional.dropout(rates, self._dropout, self.training))


class _Fire(torch.autograd.Function):  # type: ignore[misc]  # as above
    """Spikes (T, …) for currents (T, …)."""

    @staticmethod
    def forward(context: Any, currents: Any, decay: float) -> Any:
        above, spikes = torch.empty_like(currents), torch.empty_like(currents)
        potential = torch.zeros_like(currents[0])
        for step, current in enumerate(currents):
            charged = torch.add(current, potential, alpha=decay)
            torch.sub(charged, THRESHOLD, out=above[step])
            spikes[step].copy_(above[step] >= 0)
            potential = charged - RESET * spikes[step]
        context.save_for_backward(above)
        context.decay = decay
        return spikes

    @staticmethod
    def backward(context: Any, gradient: Any) -> tuple[Any, None]:
        (above,) = context.saved_tensors
        slope = (1 - above.abs()).clamp_(min=0)
        found = torch.empty_like(gradient)
        of_potential = torch.zeros_like(gradient[0])
        for step in reversed(range(len(gradient))):
            found[step] = torch.addcmul(of_potential, gradient[step] - RESET * of_potential, slope[step])
            of_potential = found[step] * context.decay
        return found, None


@torch.no_grad()  # type: ignore[untyped-decorator]  # as above
def folded(net: SpikingNet) -> dict[str, NDArray[np.float32]]:
    """Weights and biases without normalisation, on the grid: ``weight0`` (O, I, K, K), ``bias0`` (O,), …, the dense
    layer last, (O, I)."""
    found = {}
    for index, (layer, convolution, norm) in enumerate(zip(LAYERS, net.convolutions, net.norms, strict=True)):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        found[f"weight{index}"] = _snapped(convolution.weight * scale[:, None, None, None], layer.grid)
        found[f"bias{index}"] = _snapped(norm.bias - norm.running_mean * scale, layer.grid)
    found[f"weight{len(LAYERS)}"] = _snapped(net.dense.weight, DENSE_GRID)
    found[f"bias{len(LAYERS)}"] = _snapped(net.dense.bias, DENSE_GRID)
    return found


def _snapped(tensor: Any, grid: float) -> NDArray[np.float32]:
    return np.ascontiguousarray((torch.round(tensor / grid) * grid).numpy(), np.float32)
