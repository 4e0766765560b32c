"""Which format, size and rate to ask a camera for: what the configuration wants, of what the camera offers. Pure.

- A size is taken as it was asked for, or refused: a resized or cropped picture would be another input for the model.
- ``auto`` takes the format that reaches the wanted rate at the least work for us: colours before luma and chroma before
  JPEG; grey only from a camera that has nothing else. Where none reaches it, the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edged.sources.pixels import BT601, BT709, BT2020, Ycbcr

AUTO = "auto"
# The V4L2 codes behind each name of the configuration, the cheapest to convert first (tests/bench measures it).
CODES = {
    **{code: (code,) for code in ("RGB3", "BGR3", "YUYV", "YVYU", "UYVY", "VYUY", "NV12", "NV21", "YU12", "YV12")},
    "MJPEG": ("MJPG", "JPEG"),
    "GREY": ("GREY",),
    "Y16": ("Y16 ",),
}
KNOWN = tuple(code for codes in CODES.values() for code in codes)
RATE_SLACK = 0.99  # 30 frames a second are 29.97 in many cameras


class Unfit(OSError):
    """The camera that is there cannot do what is wanted; another one may come."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration asks for. A size of 0 x 0 is the camera's own, a rate of 0 too."""

    format: str = AUTO
    width: int = 0
    height: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """A size, or a range of sizes in steps, that a camera can send in one format."""

    least: tuple[int, int]
    most: tuple[int, int]
    step: tuple[int, int] = (1, 1)

    def has(self, size: tuple[int, int]) -> bool:
        """Whether this size is among them."""
        return all(
            low <= one <= high and (one - low) % max(step, 1) == 0
            for one, low, high, step in zip(size, self.least, self.most, self.step, strict=True)
        )

    def __str__(self) -> str:
        least, most = ("x".join(map(str, size)) for size in (self.least, self.most))
        return least if least == most else f"{least} to {most}"


@dataclass(frozen=True, slots=True)
class Offer:
    """One format of a camera. ``sizes`` is empty where the camera does not list them; ``rate`` is the highest at the
    wanted size, 0 where it does not say."""

    code: str
    sizes: tuple[Sizes, ...] = ()
    rate: float = 0.0

    def has(self, size: tuple[int, int]) -> bool:
        """Whether it may have this size."""
        return not self.sizes or any(sizes.has(size) for sizes in self.sizes)


def choose(wanted: Wanted, size: tuple[int, int], offers: Sequence[Offer]) -> str:
    """The V4L2 code to ask for at ``size``. Raises Unfit, which says what the camera has."""
    codes = KNOWN if wanted.format == AUTO else CODES[wanted.format]
    known = sorted((offer for offer in offers if offer.code in codes), key=lambda offer: codes.index(offer.code))
    if not known:
        has = ", ".join(offer.code.strip() for offer in offers) or "none"
        raise Unfit(
            f"the camera has no format {wanted.format if wanted.format != AUTO else 'that we know'} (has: {has})"
        )
    fitting = [offer for offer in known if offer.has(size)]
    if not fitting:
        has = "; ".join(f"{offer.code.strip()} {', '.join(map(str, offer.sizes[:16]))}" for offer in known)
        raise Unfit(f"the camera does not send {size[0]}x{size[1]} (it sends: {has})")
    fast = [offer for offer in fitting if offer.rate == 0 or offer.rate >= RATE_SLACK * wanted.rate]
    return fast[0].code if fast else max(fitting, key=lambda offer: offer.rate).code


# V4L2's colour spaces (Rec. 709 and DCI-P3, BT.2020, SMPTE 240M), and the encodings of its pixel formats.
ENCODING_OF_SPACE = {3: 2, 12: 2, 10: 6, 2: 8}
MATRICES = {2: BT709, 4: BT709, 6: BT2020, 7: BT2020, 8: Ycbcr(0.212, 0.087)}
SPACE_JPEG = 7
FULL_RANGE = 1


def ycbcr_of(space: int, encoding: int, quantization: int) -> Ycbcr:
    """How a driver's luma and chroma mean colours; 0 is a default, taken as <linux/videodev2.h> maps it."""
    matrix = MATRICES.get(encoding or ENCODING_OF_SPACE.get(space, 1), BT601)
    return replace(matrix, full=quantization == FULL_RANGE or (quantization == 0 and space == SPACE_JPEG))
