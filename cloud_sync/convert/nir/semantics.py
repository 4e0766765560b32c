"""What a NIR file leaves open, as one value, and the presets: what each framework means by the files that it writes.

NIR holds differential equations; every framework integrates them in its own way, and some write parameters that do not
give their own network back. The presets were read from the sources named with each, in the version named there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Reset = Literal["subtract", "zero", "value"]
Comparison = Literal[">=", ">"]
Start = Literal["zero", "half", "reset", "leak"]


@dataclass(frozen=True, slots=True)
class Semantics:
    """How neurons of a NIR file step.

    - ``dt``: one step, in the file's unit of time (the unit of its time constants).
    - ``reset``: a spike subtracts the threshold, or sets the membrane to zero or to the file's ``v_reset`` (``value``);
      ``if_reset`` is for IF where that differs.
    - ``comparison``: fires at the threshold (``>=``) or above it (``>``).
    - ``start``: the membrane's first value: zero, half the threshold, ``v_reset`` or ``v_leak``.
    - ``decay``: ``euler`` multiplies by 1 - dt/τ, ``exponential`` by exp(-dt/τ).
    - ``gain``: of the input of leaky neurons: ``nir`` is r·(1 - decay), ``one`` ignores r and τ.
    - ``if_gain``: of the input of I and IF: ``nir`` is r·dt, ``r`` takes r alone.
    - ``emission``: a spike is seen in the step that made it (``now``), or by everybody one step later (``next``).
    - ``undecayed_reset``: what a spike of LIF subtracts is not decayed by the step after.
    """

    dt: float | None
    reset: Reset
    comparison: Comparison
    start: Start = "zero"
    decay: Literal["euler", "exponential"] = "euler"
    gain: Literal["nir", "one"] = "nir"
    if_gain: Literal["nir", "r"] = "nir"
    if_reset: Reset | None = None
    emission: Literal["now", "next"] = "now"
    undecayed_reset: bool = False

    def __str__(self) -> str:
        """Every choice in words, for the manifest."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name} {value}" for name, value in said.items() if value not in (None, False))


@dataclass(frozen=True, slots=True)
class Preset:
    """The semantics of one framework: where they were read, and what of it NIR or we cannot carry."""

    semantics: Semantics
    source: str
    notes: str = ""


PRESETS: dict[str, Preset] = {
    "nir": Preset(
        Semantics(dt=None, reset="value", comparison=">"),
        "the equations in nir 1.0.8 (nir/ir/neuron.py), integrated by Euler's method",
    ),
    "lava": Preset(
        Semantics(dt=1e-4, reset="value", comparison=">"),
        "lava-nc 0.10.0 (lava/proc/lif/models.py) and paper/nir_to_lava.py of the NIR repository",
        "Lava delays every connection by one step; here none is added. Fixed-point rounding is not imitated.",
    ),
    "norse": Preset(
        Semantics(dt=1e-3, reset="value", comparison=">", start="leak", if_gain="r"),
        "norse 1.1.0 (norse/torch/functional/lif_box.py, iaf.py, norse/torch/utils/import_nir.py)",
        "Norse starts membranes at v_leak and adds the input of IF once a step, whatever dt is.",
    ),
    "sinabs": Preset(
        Semantics(dt=1.0, reset="subtract", comparison=">=", decay="exponential"),
        "sinabs 3.1.3 (sinabs/layers/functional/lif.py, sinabs/activation/, sinabs/nir.py)",
        "Time constants are in steps. LIF and LI are taken with norm_input=True, its default; the file does not say. "
        "Lower bounds of the membrane (min_v_mem) are not in the file; MultiSpike neurons send one spike a step here.",
    ),
    "snntorch": Preset(
        Semantics(dt=1e-4, reset="value", comparison=">", if_gain="r", if_reset="subtract"),
        "snntorch 1.0.0 (snntorch/import_nir.py, snntorch/_neurons/leaky.py, snntorch/surrogate.py)",
        "As snnTorch's own import, with reset_delay=False; a network trained with a delayed reset spikes differently.",
    ),
    "spikingjelly": Preset(
        Semantics(dt=1e-4, reset="value", comparison=">=", start="reset"),
        "spikingjelly 2.0.0 (spikingjelly/activation_based/nir_exchange/, neuron/, surrogate.py)",
        "Soft reset (v_reset=None) is not in the file: use --reset subtract.",
    ),
    "spyx": Preset(
        Semantics(
            dt=1.0, reset="subtract", comparison=">", gain="one", if_gain="r", emission="next", undecayed_reset=True
        ),
        "spyx 1.0.0 (spyx/nn.py, spyx/axn.py, spyx/nir.py)",
        "Spyx ignores r and w_in when it reads a file, and sends a spike one step after the threshold was passed.",
    ),
}
