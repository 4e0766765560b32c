"""The whole device on real parts: every held-out digit through the daemon, with no broker for the first half."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from models.digits.data import held_out
from tests.support.broker import Broker, free_port
from tests.support.device import ROOT, Device, Ledger, wait_until
from tests.support.parts import require

ACCURACY = 0.97  # the least that the bundled model must reach through the running daemon


def edged(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edged", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_all_held_out_digits_arrive_once_in_order_and_right_though_the_broker_was_down_at_first(tmp_path: Path) -> None:
    require("mosquitto")
    images, labels = held_out()
    half = len(images) // 2
    port = free_port()
    with Device(tmp_path / "device", port) as device:
        device.start("daemon")
        device.start("sync")
        device.wait_ready()
        for number in range(half):
            device.put(f"{number:04d}.npy", images[number])
        wait_until(lambda: not device.spooled(), 30, device.log("daemon"))  # inferred and stored, with nobody to tell
        wait_until(lambda: device.status()["buffer"]["unsent_rows"] == half, 10)
        with Broker(tmp_path / "broker", port=port), Ledger(port) as ledger:
            for number in range(half, len(images)):
                device.put(f"{number:04d}.npy", images[number])
            wait_until(lambda: len(ledger.rows) == len(images), 60, device.log("sync"))
            right = sum(
                json.loads(bytes(rows[0].result))["label"] == str(labels[int(key.removesuffix(".npy"))])
                for key, rows in ledger.rows.items()
            )
            print(f"\n{len(images)} held-out digits: accuracy {right / len(images):.4f}")
            assert right / len(images) >= ACCURACY
            assert ledger.doubled() == []
            assert ledger.account.complete
            assert ledger.in_order
            assert ledger.historical > 0
            told = edged("status", "--json", "--config", str(device.config))
            assert told.returncode == 0, told.stderr
            spool = json.loads(told.stdout)["pipelines"][0]["sources"][0]
            assert (spool["received"], spool["committed"]) == (len(images), len(images))
            rows = edged("results", "--json", "--limit", "5", "--config", str(device.config))
            assert [json.loads(line)["seq"] for line in rows.stdout.splitlines()] == [
                len(images) - back for back in (4, 3, 2, 1, 0)
            ]
        assert device.stop("daemon") == 0


def test_check_finds_nothing_wrong_with_a_good_device_and_names_what_is_wrong_with_a_bad_one(tmp_path: Path) -> None:
    device = Device(tmp_path / "device", 1883)
    good = edged("check", "--config", str(device.config))
    assert (good.returncode, good.stderr) == (0, "")
    assert "PROBLEM" not in good.stdout
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (ROOT / "models" / "digits" / "bundle").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    with (broken / "model.onnx").open("r+b") as graph:
        graph.seek(1000)
        graph.write(b"\xff\xff")
    bad = edged("check", "--config", str(Device(tmp_path / "bad", 1883, bundle=broken).config))
    assert bad.returncode == 1
    assert "model.onnx is damaged" in bad.stdout


def test_a_second_daemon_on_the_same_state_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with Device(tmp_path / "device", 1883) as device:
        device.start("daemon")
        device.wait_ready()
        second = edged("run", "--config", str(device.config))
        assert second.returncode == 78
        assert "another daemon holds" in second.stderr
        assert device.status()["state"] == "ready"
