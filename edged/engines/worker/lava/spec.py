"""Reads what the Lava engine needs of a bundle: its step graph and what the manifest says about it.

The graph comes as the plan ``step.onnx``, which the daemon has checked and written. Checks nothing again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from edged.bundle.graph.spec import GraphSpec, InputSpec, ReadoutSpec, StateSpec

STEP = "step.onnx"
MANIFEST = "manifest.json"


def read_graph(plan_dir: Path) -> onnx.ModelProto:
    """The canonical graph of one step. Raises OSError, DecodeError."""
    return onnx.load_model(str(plan_dir / STEP))


def read_spec(bundle_dir: Path) -> GraphSpec:
    """Inputs, states, output and readout. Raises OSError, ValueError, KeyError."""
    return parse_spec(json.loads((bundle_dir / MANIFEST).read_text(encoding="utf-8")))


def parse_spec(manifest: dict[str, Any]) -> GraphSpec:
    """The same of a manifest that is read already."""
    inputs = tuple(
        InputSpec(entry["name"], tuple(entry["shape"]), entry["time"] == "sequence") for entry in manifest["inputs"]
    )
    states = tuple(
        StateSpec(entry["in"], entry["out"], tuple(entry["shape"]), entry.get("neuron", ""))
        for entry in manifest["states"]
    )
    window = manifest["readout"]["window"]
    readout = ReadoutSpec(manifest["readout"]["kind"], window["start"], window["stop"])
    output = manifest["output"]
    return GraphSpec(inputs, states, output["name"], output["classes"], manifest["timesteps"], readout)


def golden_name(bundle_dir: Path) -> str:
    """The file of a bundle with its golden data. Raises OSError, ValueError, KeyError."""
    manifest = json.loads((bundle_dir / MANIFEST).read_text(encoding="utf-8"))
    return str(manifest["variants"][0]["golden"])
