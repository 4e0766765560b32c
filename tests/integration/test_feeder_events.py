"""Real recordings and live bytes of an event camera through ``edged-feed``, a real daemon and a bundled model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edged.feeders.kit import ExitCode
from edged.sources.decode import decode
from models.nmnist import make
from tests.support.device import ROOT, Device, wait_until
from tests.support.event_files import aedat, davis, saccade
from tests.support.feeder import Feeder, rows, wait_committed
from tests.support.recordings import data, labels

RECORDINGS = 20
NAME = "yard"


def play(directory: Path, recordings: Path) -> dict[str, dict[str, Any]]:
    """What the daemon's own replay gives, by the name of the recording."""
    tables = f'[[pipeline.source]]\ntype = "replay"\nname = "replay"\npath = "{recordings}"\nrate_hz = 50\n'
    with Device(directory, 1883, bundle=make.BUNDLE, pipeline=tables) as device:
        device.start("daemon")
        device.wait_ready()
        wait_until(lambda: "replay has ended" in device.log("daemon")(), 30, device.log("daemon"))
        wait_until(lambda: len(rows(device)) > RECORDINGS, 30, device.log("daemon"))
        return {row["key"].rpartition("-")[2]: row["body"] for row in rows(device)}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some recordings of digits, with a list beside them as it comes with the data."""
    source = data("nmnist/test")
    folder = tmp_path_factory.mktemp("recordings")
    for file in sorted(source.glob("*.bs2"))[:RECORDINGS]:
        (folder / file.name).symlink_to(file)
    (folder / "labels.txt").symlink_to(source / "labels.txt")
    return folder


def table(path: object, **more: str) -> str:
    lines = "".join(f"{name} = {value}\n" for name, value in more.items())
    return f'[[feeder]]\ntype = "events"\nname = "{NAME}"\nmodel = "nmnist"\npath = "{path}"\n{lines}'


@pytest.mark.slow
def test_recordings_get_the_results_that_the_replay_gives_though_the_daemon_is_killed(
    tmp_path: Path, recordings: Path
) -> None:
    expected = play(tmp_path / "replay", recordings)
    with Device(tmp_path / "device", 1883, bundle=make.BUNDLE, tables=table(recordings)) as device:
        device.start("daemon")
        with Feeder(device, NAME) as feeder:
            feeder.start()
            wait_committed(device, 5)
            device.kill("daemon")
            wait_until(lambda: device.pid("daemon") is None, 10)
            device.revive()
            assert feeder.wait() == 0, feeder.log()
            first = feeder.counts()
            feeder.start()  # what was fed comes back as it was
            assert feeder.wait() == 0, feeder.log()
            again = feeder.counts()
        found = rows(device)
    by_name = {row["key"].split(":")[1]: row["body"] for row in found}
    assert expected.pop("labels.txt")["error"]["code"] == "rejected"  # the replay takes every file for a frame
    assert len(found) == RECORDINGS
    assert by_name == expected
    truth = labels(data("nmnist/test"))
    right = sum(body["label"] == truth[name.removesuffix(".bs2")] for name, body in by_name.items())
    assert right >= 0.9 * RECORDINGS
    assert (first["received"], first["handed"], first["refused"]) == (RECORDINGS, RECORDINGS, 0)
    assert again["duplicates"] == RECORDINGS


@pytest.mark.slow
def test_live_bytes_are_cut_into_windows_and_bad_recordings_are_named(tmp_path: Path, recordings: Path) -> None:
    """Standard input, a FIFO in real time, and files that are no recordings, all into one daemon."""
    digits = [file.read_bytes() for file in sorted(recordings.glob("*.bs2"))[:3]]
    stream = one_after_the_other(digits)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "cut.bs2").write_bytes(digits[0][:-1])
    (bad / "far.aedat").write_bytes(aedat([(davis(200, 1, 1), 9)]))
    (bad / "good.bs2").write_bytes(digits[0])
    tables = table(fifo, format='"bs2"', quiet_s="0.3")
    with Device(tmp_path / "device", 1883, bundle=make.BUNDLE, tables=tables) as device:
        device.start("daemon")
        device.wait_ready()
        flags = ["events", "--model", "nmnist", "--socket", str(device.runtime / "http.sock"), "--name"]
        command = [sys.executable, "-m", "edged.feeders", *flags]
        piped = subprocess.run(
            [*command, "stdin", "--path", "-", "--format", "bs2"],
            input=stream,
            cwd=ROOT,
            capture_output=True,
            timeout=60,
        )
        assert piped.returncode == 0, piped.stderr
        with Feeder(device, NAME) as feeder:
            feeder.start()
            writer = threading.Thread(target=write_slowly, args=(fifo, stream))
            writer.start()
            wait_committed(device, 6)
            writer.join(10)
            counts = feeder.stop()
        refused = subprocess.run([*command, "bad", "--path", str(bad)], cwd=ROOT, capture_output=True, timeout=60)
        found = rows(device)
    assert refused.returncode == ExitCode.REFUSED
    for said in (b"cut.bs2", b"not a whole number of 5-byte events", b"far.aedat", b"34 x 34", b"refused=2"):
        assert said in refused.stderr, refused.stderr
    by_key = {row["key"]: row["body"] for row in found if row["kind"] == "result"}
    from_stdin, from_fifo = (scores(by_key, name) for name in ("stdin", NAME))
    assert len(from_stdin) == 3
    assert from_stdin == from_fifo
    assert from_stdin[0] == scores(by_key, "bad")[0]  # the first window is the recording that it was made from
    assert (counts["received"], counts["handed"]) == (3, 3)


def scores(by_key: dict[str, Any], feeder: str) -> list[Any]:
    return [by_key[key]["scores"] for key in sorted(by_key) if key.startswith(f"{feeder}:")]


def one_after_the_other(recordings: list[bytes]) -> bytes:
    """Recordings as one stream: each begins a second after the former did."""
    parts = []
    for number, recording in enumerate(recordings):
        events = decode("a.bs2", recording)
        rows = zip(events.x, events.y, events.polarity, events.t_us, strict=True)  # type: ignore[union-attr]  # events
        parts.append(saccade((int(x), int(y), int(p), int(t) + number * 1_000_000) for x, y, p, t in rows))
    return b"".join(parts)


def write_slowly(fifo: Path, stream: bytes) -> None:
    with fifo.open("wb", buffering=0) as file:
        for begin in range(0, len(stream), 1237):
            file.write(stream[begin : begin + 1237])
            time.sleep(0.005)
