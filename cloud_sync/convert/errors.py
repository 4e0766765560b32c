"""What a conversion refuses, and how it says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edged.errors import EdgedError


class ConversionError(EdgedError):
    """The network, the data or the options cannot be converted. Nothing was written."""

    code = "conversion"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One node of the ANN that has no spiking form here: its name, its operator, the reason, and what to do."""

    node: str
    op: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.op} {self.node!r}: {self.reason}{tail}"


class RefusedNodesError(ConversionError):
    """All nodes that stand in the way of a conversion, so that they can be changed at once."""

    code = "refused"

    def __init__(self, where: str, refusals: Sequence[Refusal], prefix: str = "", whole: str = "") -> None:
        """``prefix`` names the last value up to which everything can be converted, if there is one; ``whole`` says how
        all of it can be."""
        noun = "node" if len(refusals) == 1 else "nodes"
        lines = "\n".join(f"  {refusal}" for refusal in refusals)
        offer = f"\n  everything up to {prefix!r} can be converted: --until {prefix!r}" if prefix else ""
        offer += f"\n  {whole}" if whole else ""
        super().__init__(f"{where}: {len(refusals)} {noun} cannot be converted\n{lines}{offer}")
        self.refusals = tuple(refusals)
        self.prefix = prefix
