"""What the worker reads in a bundle's manifest: the names of a step's outputs, and how a window is read out.

The daemon has verified the manifest. Standard library and NumPy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MANIFEST = "manifest.json"


class Spec(NamedTuple):
    """``next_states``: what the graph calls the new value of a state, by the state's name."""

    output: str
    next_states: dict[str, str]
    kind: str  # of the readout: mean, sum, last, max, first_spike
    start: int
    stop: int

    def read_out(self, outputs: Any) -> Any:
        """(T, B, classes) → (B, classes), float32."""
        chosen = outputs[self.start : self.stop]
        if self.kind == "first_spike":
            fired = chosen > 0
            first = np.where(fired.any(axis=0), fired.argmax(axis=0), len(chosen))
            return (len(chosen) - first).astype(np.float32)
        if self.kind == "last":
            return chosen[-1]
        if self.kind == "max":
            return chosen.max(axis=0)
        return chosen.sum(axis=0) if self.kind == "sum" else chosen.mean(axis=0)


def read_spec(bundle_dir: Path) -> Spec:
    """Raises OSError, ValueError, KeyError."""
    manifest = json.loads((bundle_dir / MANIFEST).read_text(encoding="utf-8"))
    readout = manifest["readout"]
    states = {state["in"]: state["out"] for state in manifest["states"]}
    window = readout["window"]
    return Spec(manifest["output"]["name"], states, readout["kind"], window["start"], window["stop"])
