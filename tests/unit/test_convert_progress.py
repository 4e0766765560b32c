"""Progress: a line every few seconds with the time that is left, and none where it is not needed."""

from __future__ import annotations

from cloud_sync.convert.progress import Progress


def test_a_long_loop_says_every_few_seconds_how_long_it_will_take() -> None:
    now, said = 100.0, list[str]()
    progress = Progress(said.append, "images", 1000, lambda: now)
    for done in range(100, 1001, 100):
        now += 2.0
        progress.at(done)
    assert said == [
        "  images: 200 of 1,000, about 16 s left",
        "  images: 400 of 1,000, about 12 s left",
        "  images: 600 of 1,000, about 8 s left",
        "  images: 800 of 1,000, about 4 s left",
    ]


def test_a_short_loop_says_nothing() -> None:
    said = list[str]()
    progress = Progress(said.append, "images", 10, lambda: 0.0)
    for done in range(11):
        progress.at(done)
    assert said == []
