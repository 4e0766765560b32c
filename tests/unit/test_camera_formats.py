"""What is asked of a camera, of what it offers; and what its luma and chroma mean."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config import CameraFormat
from edged.sources.camera_formats import AUTO, CODES, KNOWN, Offer, Sizes, Unfit, Wanted, choose, ycbcr_of
from edged.sources.pixels import BT601, BT709, BT2020, DECODERS, Ycbcr

VGA, HD = (640, 480), (1920, 1080)


def at(code: str, rate: float, *sizes: tuple[int, int]) -> Offer:
    return Offer(code, tuple(Sizes(size, size) for size in sizes), rate)


def test_every_format_of_the_configuration_has_its_codes_and_each_can_be_converted() -> None:
    assert set(get_args(CameraFormat)) == {AUTO, *CODES}
    assert set(KNOWN) == set(DECODERS)


@pytest.mark.parametrize(
    ("offers", "rate", "code"),
    [
        ([at("MJPG", 30, VGA), at("YUYV", 30, VGA)], 30, "YUYV"),  # both reach the rate: the cheaper one
        ([at("MJPG", 30, HD), at("YUYV", 5, HD)], 30, "MJPG"),  # of a webcam on USB 2: only JPEG is fast enough
        ([at("MJPG", 30, HD), at("YUYV", 5, HD)], 5, "YUYV"),
        ([at("MJPG", 30, HD), at("YUYV", 5, HD)], 0, "YUYV"),
        ([at("MJPG", 24, HD), at("YUYV", 5, HD)], 60, "MJPG"),  # none does: the fastest
        ([at("YUYV", 29.97, VGA)], 30, "YUYV"),
        ([at("GREY", 30, VGA), at("YUYV", 30, VGA)], 30, "YUYV"),  # colours, where there are some
        ([at("GREY", 30, VGA)], 30, "GREY"),
        ([at("H264", 30, VGA), at("NV12", 0, VGA)], 30, "NV12"),  # it does not say how fast it is
        ([Offer("YUYV")], 30, "YUYV"),  # nor what sizes it has
        ([Offer("UYVY", (Sizes((32, 32), (4096, 4096), (2, 2)),), 60)], 30, "UYVY"),
    ],
)
def test_auto_takes_the_cheapest_that_is_fast_enough(offers: list[Offer], rate: float, code: str) -> None:
    size = HD if offers[0].has(HD) and not offers[0].has(VGA) else VGA
    assert choose(Wanted(AUTO, *size, rate), size, offers) == code
    assert choose(Wanted(AUTO, *size, rate), size, offers[::-1]) == code


def test_a_format_that_was_named_is_taken_or_refused() -> None:
    offers = [at("YUYV", 30, VGA), at("JPEG", 30, VGA), at("H264", 30, VGA)]
    assert choose(Wanted("MJPEG", *VGA), VGA, offers) == "JPEG"
    with pytest.raises(Unfit, match=r"has no format NV12 \(has: YUYV, JPEG, H264\)"):
        choose(Wanted("NV12", *VGA), VGA, offers)


def test_what_the_camera_cannot_do_is_refused_with_what_it_can() -> None:
    with pytest.raises(Unfit, match=r"no format that we know \(has: H264\)"):
        choose(Wanted(), VGA, [at("H264", 30, VGA)])
    with pytest.raises(Unfit, match="has: none"):
        choose(Wanted(), VGA, [])
    ranges = Offer("NV12", (Sizes((16, 16), (320, 240), (2, 2)),))
    with pytest.raises(Unfit, match=r"does not send 640x480 \(it sends: YUYV 1920x1080; NV12 16x16 to 320x240\)"):
        choose(Wanted(AUTO, *VGA), VGA, [at("YUYV", 30, HD), ranges])


@given(st.tuples(*[st.integers(1, 40)] * 2), st.integers(0, 9), st.integers(0, 9))
def test_a_range_has_the_sizes_of_its_steps_and_no_other(size: tuple[int, int], step: int, steps: int) -> None:
    most = (4 + step * steps, 4 + step * steps)
    wanted = {4 + max(step, 1) * count for count in range(100) if 4 + max(step, 1) * count <= most[0]}
    assert Sizes((4, 4), most, (step, step)).has(size) == (set(size) <= wanted)


def test_defaults_of_luma_and_chroma_are_those_of_the_kernel() -> None:
    # (colour space, encoding, quantization) as <linux/videodev2.h> numbers them: the kernel's own mapping macros
    assert ycbcr_of(8, 0, 0) == BT601  # sRGB, what most webcams say
    assert ycbcr_of(0, 0, 0) == BT601
    assert ycbcr_of(7, 0, 0) == Ycbcr(full=True)  # JPEG
    assert ycbcr_of(7, 0, 2) == BT601
    assert ycbcr_of(3, 0, 0) == BT709
    assert ycbcr_of(8, 2, 1) == Ycbcr(0.2126, 0.0722, full=True)
    assert ycbcr_of(10, 0, 0) == BT2020
    assert ycbcr_of(3, 1, 0) == BT601  # the encoding counts more than the space
