"""Converts one ANN with SpikingJelly and sinabs and prints what their networks reach: one line of JSON a way.

``test_bench_convert_peers`` runs it in an environment of its own, which is never one of the product's. The weights are
those of ``models/mnist/ann.onnx``, put back into the PyTorch network that they came from.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import onnx
import torch  # type: ignore[import-not-found]  # lives in the peers' environment only
from onnx import numpy_helper

from models.mnist import data, train

SWEEP = (4, 8, 16, 32)
TIMED = 8  # T of the timing
BATCH = 100
ROUNDS = 30

Run = Callable[[Any, int], list[Any]]  # images and steps → scores after each step
BINARY, COUNTS = "0, 1", "0, 1, 2, …"


def original() -> Any:
    """The trained network in PyTorch, in evaluation mode."""
    stored = onnx.load(train.OUT).graph.initializer
    model = train.network()
    wanted = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    weights = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in stored if tensor.name in wanted}
    if weights.keys() != wanted:
        raise SystemExit(f"{train.OUT.name} lacks {sorted(wanted - weights.keys())}")
    model.load_state_dict(weights, strict=False)
    return model.eval()


def spikingjelly_ways(model: Any, calibration: Any) -> dict[str, Run]:
    """SpikingJelly's rate coding with its recipes: scores after each step, of a batch."""
    from spikingjelly.activation_based import ann2snn, functional  # type: ignore[import-not-found]  # as torch

    batches = [(batch, torch.zeros(len(batch))) for batch in calibration.split(BATCH)]
    recipes = {
        "max": ann2snn.RateCodingRecipe(dataloader=batches, mode="max"),
        "99.9 %": ann2snn.RateCodingRecipe(dataloader=batches, mode="99.9%"),
        "99.9 %, by channel, half full": ann2snn.RateCodingRecipe(
            dataloader=batches, mode="99.9%", channel_wise=True, half_threshold=True
        ),
        "threshold balancing": ann2snn.LocalThresholdBalancingRecipe(dataloader=batches),
    }

    def runner(snn: Any) -> Run:
        def run(images: Any, steps: int) -> list[Any]:
            functional.reset_net(snn)
            return [snn(images) for _ in range(steps)]

        return run

    found = {}
    for name, recipe in recipes.items():
        snn = ann2snn.FXConverter(recipe=recipe, device="cpu").convert(copy.deepcopy(model)).eval()
        found[f"SpikingJelly, {name}"] = runner(snn)
    return found


def sinabs_ways(model: Any) -> dict[str, Run]:
    """sinabs' from_model, which calibrates nothing: threshold 1 everywhere."""
    import sinabs.layers as layers  # type: ignore[import-not-found]  # as torch
    from sinabs.activation import MultiSpike, SingleSpike  # type: ignore[import-not-found]  # as torch
    from sinabs.from_torch import from_model  # type: ignore[import-not-found]  # as torch

    def runner(spike: Any) -> Run:
        def run(images: Any, steps: int) -> list[Any]:
            snn = from_model(copy.deepcopy(model), num_timesteps=steps, spike_fn=spike).spiking_model.eval()
            for layer in snn.modules():
                if isinstance(layer, layers.StatefulLayer):
                    layer.reset_states()
            out = snn(images.repeat_interleave(steps, dim=0))  # sinabs folds time into the batch, samples outermost
            return list(out.unflatten(0, (len(images), steps)).unbind(1))

        return run

    return {"sinabs, one spike a step": runner(SingleSpike), "sinabs, several spikes a step": runner(MultiSpike)}


def judge(run: Run, images: Any, labels: Any) -> dict[str, Any]:
    """Accuracy at each T, and the least time of one image at T = TIMED in microseconds."""
    right = dict.fromkeys(SWEEP, 0)
    for batch, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        total = torch.stack(run(batch, max(SWEEP))).cumsum(0)
        for steps in SWEEP:
            right[steps] += int((total[steps - 1].argmax(1) == truth).sum())
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        run(images[:1], TIMED)
        times.append(time.perf_counter_ns() - start)
    return {"accuracy": {steps: right[steps] / len(images) for steps in SWEEP}, "us": min(times) / 1000}


def main() -> None:
    """Judge every way on the first IMAGES test images."""
    torch.set_num_threads(1)
    model = original()
    calibration, _ = train.tensors(data.calibration())
    images, labels = train.tensors(data.test(int(sys.argv[1])))
    print(json.dumps({name: version(name) for name in ("spikingjelly", "sinabs", "torch")}), flush=True)
    with torch.no_grad():
        ways: dict[str, Run] = {"the ANN in PyTorch": lambda images, steps: [model(images)] * steps}
        ways |= spikingjelly_ways(model, calibration) | sinabs_ways(model)
        for name, run in ways.items():
            several = "several" in name
            spikes = "" if name.startswith("the ANN") else COUNTS if several else BINARY
            print(json.dumps({"way": name, "spikes": spikes, **judge(run, images, labels)}), flush=True)


if __name__ == "__main__":
    main()
