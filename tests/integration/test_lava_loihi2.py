"""Loihi 2 without a board: why it is not here, how its host is chosen, and that what would go there is in integers."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from edged.bundle.plans import ensure_plans
from edged.engines.engine import open_engine
from edged.engines.life import Job, WorkerSpec
from edged.errors import EngineLost
from tests.support.bundles import make_bundle
from tests.support.lava import lava_python, random_case, save_case
from tests.support.tree import ROOT


def in_lava(code: str, *arguments: str) -> str:
    """Run a few lines on Lava's interpreter."""
    done = subprocess.run(
        [lava_python(), "-c", code, *arguments], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_intels_extension_the_worker_says_that_it_is_missing(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "dense")

    async def main() -> None:
        plans = await ensure_plans(bundle, tmp_path / "cache")
        job = Job(bundle, 1, plans, tmp_path / "cache")
        async with open_engine(WorkerSpec("lava-loihi2", lava_python(), load_deadline_s=60.0), job):
            raise AssertionError("there is no board here")

    with pytest.raises(EngineLost, match=r"no Loihi 2: Intel's extension of Lava \(lava-loihi\) is not installed"):
        asyncio.run(main())


HOSTS = """\
import json, sys
from edged.engines.worker.lava import loihi2
calls = []
def chosen(kind, where):
    return lambda **given: calls.append([kind, given[where], given["loihi_gen"].value])
loihi2.loihi.use_ethernet_host = chosen("ethernet", "host_address")
loihi2.loihi.use_slurm_host = chosen("slurm", "partition")
for environment in json.loads(sys.argv[1]):
    try:
        loihi2.choose_host(environment)
    except loihi2.NotPresent as error:
        calls.append(str(error))
print(json.dumps(calls))
"""


def test_the_boards_host_is_told_by_the_environment() -> None:
    given = [
        {"EDGED_LOIHI2_HOST": "ethernet:10.0.0.2", "EDGED_LOIHI2_CHIP": "N3C1"},
        {"EDGED_LOIHI2_HOST": "slurm:oheogulch"},
        {"EDGED_LOIHI2_HOST": "slurm"},
        {},
        {"EDGED_LOIHI2_HOST": "ethernet:"},
        {"EDGED_LOIHI2_HOST": "slurm", "EDGED_LOIHI2_CHIP": "N9"},
    ]
    found = json.loads(in_lava(HOSTS, json.dumps(given)))
    assert found[:3] == [["ethernet", "10.0.0.2", "N3C1"], ["slurm", "oheogulch", "N3B3"], ["slurm", None, "N3B3"]]
    wanted = "it must be ethernet:ADDRESS, slurm or slurm:PARTITION"
    assert found[3:5] == [f"EDGED_LOIHI2_HOST is {kind!r}; {wanted}" for kind in ("", "ethernet")]
    assert found[5] == "no Loihi 2: 'N9' is not a valid ChipGeneration"


UNREACHABLE = """\
from edged.engines.worker.lava import loihi2
try:
    loihi2.choose_host({"EDGED_LOIHI2_HOST": "ethernet:10.0.0.2"})
except loihi2.NotPresent as error:
    print(error)
"""


def test_lavas_own_refusal_of_a_host_becomes_the_reason() -> None:
    assert in_lava(UNREACHABLE) == ("no Loihi 2: Attempting to use Loihi2 but Lava-Loihi is not installed.\n")


PLACED = """\
import json, sys
from pathlib import Path
import numpy as np
from edged.engines.worker.lava import loihi2
from edged.engines.worker.lava.network import read
from edged.engines.worker.lava.spec import read_graph, read_spec
built = []
loihi2.Runtime = lambda wired, config: built.append((wired, config))
place = Path(sys.argv[1])
spec = read_spec(place)
loihi2.make(read(read_graph(place), spec), spec, place)
((wired, config),) = built
lifs = [one.process for one in wired.placed.values()]
synapses = [one.process for one in wired.synapses]
values = [np.asarray(getattr(s, "weights", None).init.todense() if hasattr(getattr(s, "weights", None).init, "todense")
          else s.weights.init) for s in synapses if hasattr(s, "weights")]
values += [s.weight.init for s in synapses if hasattr(s, "weight")]
print(json.dumps({
    "config": type(config).__name__,
    "processes": sorted({type(p).__name__ for p in [*lifs, *synapses]}),
    "whole": all((value == np.round(value)).all() and np.abs(value).max(initial=0) <= 254 for value in values),
    "decays": all(isinstance(p.du.init, int) and 0 <= p.du.init < 4096 and isinstance(p.dv.init, int) for p in lifs),
    "thresholds": all(isinstance(p.vth.init, int) and 0 <= p.vth.init < 1 << 17 for p in lifs),
    "biases": all(np.abs(p.bias_mant.init).max() <= 4095 and 0 <= np.max(p.bias_exp.init) <= 7 for p in lifs),
}))
"""


@pytest.mark.parametrize("seed", [3, 15])
def test_what_goes_to_the_chip_are_lavas_own_processes_with_integers_that_fit(tmp_path: Path, seed: int) -> None:
    save_case(tmp_path, random_case(seed, alike=True), integers=True)
    found = json.loads(in_lava(PLACED, str(tmp_path)))
    assert found.pop("config") == "Loihi2HwCfg"
    assert set(found.pop("processes")) <= {"LIF", "Dense", "Sparse", "DelaySparse", "Conv"}
    assert found == dict.fromkeys(("whole", "decays", "thresholds", "biases"), True)
