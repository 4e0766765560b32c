"""Train the spiking network behind ``nmnist``; write its weights. Needed only to change the model.

    python3 -m venv .venv-train
    .venv-train/bin/pip install -r models/requirements-train.txt
    EDGED_DATA=… .venv-train/bin/python -m models.nmnist.train FOLDER
    cp FOLDER/all.npz models/nmnist/weights.npz
    EDGED_DATA=… python -m models.nmnist.crossvalidate FOLDER
    EDGED_DATA=… python -m models.nmnist.make

Surrogate gradients through time, from random weights, on recordings that are varied anew in every epoch (``augment``).
Stratified five-fold cross-validation on the 1,000 training recordings judges the recipe: ``fold0.npz`` to
``fold4.npz`` have each seen four fifths of them. The bundle's network, ``all.npz``, has seen all. Nothing is chosen on
the test recordings: the last weights are kept. Nothing is judged here either, but by the others, as a device runs it.

One thread and fixed seeds; another version of torch gives other weights of the same quality. Takes some 20 minutes;
``--only`` trains some of the networks, so that two processes can share the work.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]  # lives in the training environment only
import torch.nn.functional as functional  # type: ignore[import-not-found]  # as above

from edged.bundle.arrays import encode_npz
from models.nmnist import data
from models.nmnist.augment import Recordings, frames, recordings
from models.nmnist.surrogate import SpikingNet, folded

_SEED = 0
_EPOCHS, _BATCH, _RATE, _DECAY = 50, 40, 5e-3, 2e-2
_WARM_UP = 0.25  # of all steps, with a rising rate
_DROPOUT = 0.3
_SMOOTHING = 0.05  # of labels
_NAMES = ("all", *(f"fold{fold}" for fold in range(data.FOLDS)))


def fit(given: Recordings, labels: Any, rows: Any) -> SpikingNet:
    """Train a network on some of the recordings."""
    torch.manual_seed(_SEED)
    net = SpikingNet(len(data.LABELS), _DROPOUT)
    random = torch.Generator().manual_seed(_SEED + 1)
    steps = len(rows) // _BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_EPOCHS * steps, pct_start=_WARM_UP)
    for epoch in range(_EPOCHS):
        order, total = rows[torch.randperm(len(rows), generator=random)], 0.0
        for batch in order[: steps * _BATCH].split(_BATCH):
            optimizer.zero_grad()
            scores = net(frames(given, batch, random).transpose(0, 1))
            loss = functional.cross_entropy(scores, labels[batch], label_smoothing=_SMOOTHING)
            loss.backward()
            total += loss.item()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"  epoch {epoch + 1} of {_EPOCHS}: loss {total / steps:.3f}", flush=True)
    net.eval()
    return net


def main() -> None:
    """Train the networks and write them."""
    parser = argparse.ArgumentParser(prog="python -m models.nmnist.train", description="Train the spiking network.")
    parser.add_argument("folder", type=Path, help="where the weights go")
    parser.add_argument("--only", nargs="+", choices=_NAMES, default=_NAMES, metavar="NAME", help=" ".join(_NAMES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    events, truth = data.recordings("train")
    given, labels, dealt = recordings(events), torch.tensor(truth), data.folds(truth)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        seen = np.arange(len(truth)) if name == "all" else np.flatnonzero(dealt != int(name.removeprefix("fold")))
        print(f"{name}: {len(seen)} recordings", flush=True)
        start = time.process_time()
        net = fit(given, labels, torch.tensor(seen))
        (options.folder / f"{name}.npz").write_bytes(encode_npz(folded(net)))
        print(f"wrote {name}.npz after {time.process_time() - start:.0f} s of one processor", flush=True)


if __name__ == "__main__":
    main()
