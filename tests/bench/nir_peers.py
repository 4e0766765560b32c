"""The same NIR files in our import and in the frameworks' own: how many outputs differ. Decides nothing.

    python -m venv peers && peers/bin/pip install 'edged[convert]' nir==1.0.8 sinabs==3.1.3 snntorch==1.0.0 \
        norse==1.1.0 spikingjelly==2.0.0
    EDGED_DATA=… peers/bin/python -m tests.bench.nir_peers

Each framework reads a random network of its own kinds of neurons, and sinabs the published CNN on real recordings.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cloud_sync.convert.network import Floats
from cloud_sync.convert.nir.file import read
from cloud_sync.convert.nir.importer import lower
from cloud_sync.convert.nir.semantics import PRESETS
from cloud_sync.convert.nir.semantics import Semantics as Chosen
from edged.bundle.encoding import bin_events
from edged.bundle.graph.stock import Stock
from edged.bundle.manifest import EventFrames
from edged.sources.events import decode_saccade
from models import thirdparty
from tests.support.nir_files import Fields, Net

STEPS, BATCH, SIZE, WIDTH = 100, 8, 20, 16
DATA = thirdparty.folder()


def ours(path: Path, semantics: Chosen, inputs: Floats) -> Floats:
    """What our import of a file sends: (T, B, classes) for (T, B, *shape)."""
    graph = lower(read(path), semantics).graph
    session, sent = Stock(graph.model), []
    states = {s.input: np.zeros((inputs.shape[1], *s.shape), np.float32) for s in graph.states}
    for frames in inputs:
        values = session.run({"input": frames, **states})
        states = {s.input: values[s.output] for s in graph.states}
        sent.append(values[graph.output])
    return np.array(sent)


def theirs(model: Any, inputs: Floats) -> Floats:
    """What a framework's module sends; it takes and gives back its state."""
    torch = import_module("torch")
    sent, state = [], None
    with torch.no_grad():
        for frames in torch.tensor(inputs):
            made, state = model(frames) if state is None else model(frames, state)
            sent.append(made.numpy())
    return np.array(sent)


def random_net(kinds: tuple[str, ...], dt: float, if_r: float) -> Net:
    """SIZE → a layer of WIDTH for each kind; parameters that all frameworks can read."""
    rng, one = np.random.default_rng(0), np.ones(WIDTH, np.float32)
    cells: dict[str, Fields] = {
        "IF": {"r": if_r * one, "v_threshold": one},
        "LIF": {"tau": 10 * dt * one, "r": one, "v_leak": 0 * one, "v_threshold": one / 6},
        "CubaLIF": {"tau_syn": 5 * dt * one, "tau_mem": 10 * dt * one, "r": 3 * one, "v_leak": 0 * one,
                    "v_threshold": 0.3 * one, "w_in": 2 * one},
    }  # fmt: skip
    nodes: dict[str, Fields] = {"input": {"type": "Input", "shape": np.array([SIZE])}}
    width, path = SIZE, ["input"]
    for number, kind in enumerate(kinds):
        weight = rng.normal(0.05, 0.6, (WIDTH, width)).astype(np.float32)
        nodes[f"w{number}"] = {"type": "Affine", "weight": weight, "bias": rng.normal(0, 0.1, WIDTH).astype(np.float32)}
        nodes[f"c{number}"] = {"type": kind, **cells[kind], "v_reset": 0 * one}
        path += [f"w{number}", f"c{number}"]
        width = WIDTH
    nodes["output"] = {"type": "Output", "shape": np.array([WIDTH])}
    path.append("output")
    return Net(nodes, list(itertools.pairwise(path)))


def tell(name: str, one: Floats, other: Floats) -> None:
    print(f"{name:44} {int((one != other).sum()):6} of {one.size} outputs differ, {int(one.sum())} spikes", flush=True)


def compare(preset: str, load: Callable[[Any, float], Any], kinds: tuple[str, ...], if_r: float = 1.0) -> None:
    """One framework on one random network."""
    semantics = PRESETS[preset].semantics
    inputs = (np.random.default_rng(1).random((STEPS, BATCH, SIZE)) < 0.3).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = random_net(kinds, semantics.dt or 1.0, if_r).write(Path(folder) / "net.nir")
        graph = import_module("nir").read(path)
        tell(
            f"{preset} {'-'.join(kinds)}",
            theirs(load(graph, semantics.dt or 1.0), inputs),
            ours(path, semantics, inputs),
        )


def published_cnn() -> None:
    """sinabs' own import of its CNN, as it is and without what no NIR file says."""
    sinabs, torch = import_module("sinabs"), import_module("torch")
    layers, path, folder = import_module("sinabs.layers"), DATA / "nir" / "cnn_sinabs.nir", DATA / "nmnist" / "test"
    words = (folder / "labels.txt").read_text(encoding="ascii").split()
    binned = EventFrames(width=34, height=34, polarities=2, dt_us=1000, t0="first_event", polarity_order="off,on",
                         accumulate="count", tail="drop")  # fmt: skip
    recordings = [decode_saccade((folder / f"{number}.bs2").read_bytes()) for number in words[::2]]
    inputs = np.stack([bin_events(binned, 340, one) for one in recordings], axis=1)
    found = {"edged": ours(path, replace(PRESETS["sinabs"].semantics), inputs)}
    for name, bare in (("sinabs", False), ("sinabs, one spike a step, no lower bound", True)):
        model = import_module("sinabs.nir").from_nir(import_module("nir").read(path, type_check=False), batch_size=50)
        for module in model.modules():
            if bare and isinstance(module, layers.IAFSqueeze):
                module.min_v_mem, module.spike_fn = None, sinabs.activation.SingleSpike
        with torch.no_grad():
            made = model(torch.tensor(np.ascontiguousarray(np.swapaxes(inputs, 0, 1))).reshape(-1, 2, 34, 34))
        found[name] = (made[0] if isinstance(made, tuple) else made).reshape(50, 340, 10).swapaxes(0, 1).numpy()
    for name, sent in found.items():
        right = int((sent.sum(axis=0).argmax(axis=1) == np.array(words[1::2], int)).sum())
        tell(f"cnn_sinabs.nir, {name}: {right} of 50", sent, found["edged"])


def snntorch(graph: Any, _: float) -> Any:
    return import_module("snntorch.import_nir").import_from_nir(graph)


def norse(graph: Any, dt: float) -> Any:
    return import_module("norse").torch.from_nir(graph, dt=dt)


def spikingjelly(graph: Any, dt: float) -> Any:
    return import_module("spikingjelly.activation_based.nir_exchange").import_from_nir(graph, dt=dt)


def main() -> None:
    """Every framework in turn."""
    compare("snntorch", snntorch, ("LIF", "LIF"))
    for kinds in (("IF", "IF"), ("LIF", "LIF"), ("CubaLIF",)):
        compare("norse", norse, kinds)
    for kinds in (("IF", "IF"), ("LIF", "LIF")):
        compare("spikingjelly", spikingjelly, kinds, 1 / (PRESETS["spikingjelly"].semantics.dt or 1.0))
    published_cnn()


if __name__ == "__main__":
    main()
