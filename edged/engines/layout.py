"""Where every tensor of a model lies in the memory that the daemon and a worker share.

The daemon lays it out, LOAD carries it, the worker checks it; both sides then only use regions that are bounded,
aligned and apart. Pure; standard library only, Python 3.8.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from edged.engines.wire_json import WireError, get_count, get_value

SLOTS = 2  # one batch is prepared while another runs
ALIGNMENT = 64  # bytes: a cache line, and what AVX-512 loads like best
PAGE = 4096
MAX_MEMORY = 1 << 32  # a mistake in a manifest must not map more than a device has

DTYPES = {
    "float32": 4, "float64": 8, "float16": 2, "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip


class Role(enum.Enum):
    """What a region of a slot holds. The regions of INFER and of STEP do not overlap."""

    __hash__ = object.__hash__  # Enum's own is Python code, and every call looks for arrays by their role

    INPUT = "input"  # INFER: constants (B, *shape), sequences (T, B, *shape)
    READOUT = "readout"  # INFER: (B, classes)
    STEP_INPUT = "step-input"  # STEP: (B, *shape)
    STATE = "state"  # STEP: (B, *shape)
    STEP_OUTPUT = "step-output"  # STEP: (B, *shape)
    NEXT_STATE = "next-state"  # STEP: (B, *shape), in the order of STATE and under the same names


class Tensor(NamedTuple):
    """A tensor of one sample: no batch axis, no time axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sequence: bool = False


class Region(NamedTuple):
    """A tensor at its place, ``offset`` bytes into a slot. A batch of B fills the region's beginning, contiguously."""

    role: Role
    tensor: Tensor
    offset: int


class Layout(NamedTuple):
    """Where every tensor lies: slot i begins at ``i * slot_bytes``."""

    timesteps: int
    max_batch: int
    slot_bytes: int
    regions: tuple[Region, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole memfd."""
        return SLOTS * self.slot_bytes

    def shape(self, region: Region, batch: int) -> tuple[int, ...]:
        """The shape of a region's array when it holds ``batch`` samples."""
        time = (self.timesteps,) if region.tensor.sequence else ()
        return (*time, batch, *region.tensor.shape)

    def role(self, role: Role) -> list[Region]:
        """The regions of a role, in the model's order."""
        return [region for region in self.regions if region.role is role]

    def table(self) -> dict[str, Any]:
        """As JSON values; ``parse_layout`` reads them."""
        regions = [[r.role.value, r.tensor.name, r.tensor.dtype, list(r.tensor.shape), r.tensor.sequence, r.offset]
                   for r in self.regions]  # fmt: skip
        return {"timesteps": self.timesteps, "max_batch": self.max_batch, "slot_bytes": self.slot_bytes,
                "regions": regions}  # fmt: skip


def lay_out(timesteps: int, max_batch: int, tensors: list[tuple[Role, Tensor]]) -> Layout:
    """Place tensors one after another, aligned. Raises WireError for a type that cannot be shared, or for too much."""
    layout = Layout(timesteps, max_batch, PAGE, ())
    regions, offset = [], 0
    for role, tensor in tensors:
        region = Region(role, tensor, offset)
        offset = _round_up(offset + region_bytes(layout, region), ALIGNMENT)
        regions.append(region)
    return check_layout(Layout(timesteps, max_batch, _round_up(max(offset, 1), PAGE), tuple(regions)))


def region_bytes(layout: Layout, region: Region) -> int:
    """Bytes of a region with a full batch. Raises WireError for an unknown type."""
    if region.tensor.dtype not in DTYPES:
        raise WireError(f"{region.tensor.name} has the type {region.tensor.dtype!r}, known are {', '.join(DTYPES)}")
    size = DTYPES[region.tensor.dtype]
    for extent in layout.shape(region, layout.max_batch):
        size *= extent
    return size


def check_layout(layout: Layout) -> Layout:
    """The same layout, proven to be sound: bounded, aligned, nothing overlaps. Raises WireError."""
    if not 1 <= layout.max_batch < 1 << 16 or not 1 <= layout.timesteps < 1 << 20:
        raise WireError(f"max_batch {layout.max_batch}, timesteps {layout.timesteps}")
    if layout.slot_bytes < 1 or layout.slot_bytes % PAGE or layout.size > MAX_MEMORY:
        raise WireError(f"a slot of {layout.slot_bytes} bytes; {SLOTS} of them may take {MAX_MEMORY}")
    end, names = 0, set()
    for region in layout.regions:
        if any(extent < 1 for extent in region.tensor.shape):
            raise WireError(f"{region.tensor.name} has the shape {region.tensor.shape}")
        if region.offset < end or region.offset % ALIGNMENT:
            raise WireError(f"{region.tensor.name} lies at {region.offset}, inside its neighbour or not aligned")
        end = region.offset + region_bytes(layout, region)
        names.add((region.role, region.tensor.name))
    if end > layout.slot_bytes or len(names) != len(layout.regions):
        raise WireError(f"regions end at {end} in a slot of {layout.slot_bytes} bytes, or a name is used twice")
    return layout


def parse_layout(table: dict[str, Any]) -> Layout:
    """Read ``Layout.table`` from a peer. Raises WireError."""
    regions = tuple(_region(item) for item in get_value(table, "regions", list))
    sizes = [get_count(table, name) for name in ("timesteps", "max_batch", "slot_bytes")]
    return check_layout(Layout(sizes[0], sizes[1], sizes[2], regions))


def _region(item: Any) -> Region:
    if not isinstance(item, list) or len(item) != 6:
        raise WireError(f"not a region: {item!r}")
    role, name, dtype, shape, sequence, offset = item
    texts = isinstance(name, str) and isinstance(dtype, str) and isinstance(sequence, bool)
    if not texts or type(offset) is not int or not isinstance(shape, list) or any(type(n) is not int for n in shape):
        raise WireError(f"not a region: {item!r}")
    try:
        return Region(Role(role), Tensor(name, dtype, tuple(shape), sequence), offset)
    except ValueError:
        raise WireError(f"a region of the unknown role {role!r}") from None


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
