"""``edged diag``: planted secrets in every place do not reach the bundle; it is bounded and needs no daemon."""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from edged.cli import main
from edged.diag import bundle, cli
from edged.diag.redaction import Redactor
from edged.doctor.machine import Answer, Machine
from edged.errors import EdgedError
from edged.status import EngineFacts, LinkFacts
from tests.support.buffer import commit, entries, store_settings
from tests.support.device import Device
from tests.support.doctor import Patient, ready

SECRETS = {
    "inline": "inl1ne-Passw0rd",
    "url": "url-Passw0rd-77",
    "file": "f1le passw0rd with spaces",
    "key": "MHcCAQEEIPlantedKeyMaterial0123456789abcdefghijk",
    "token": "tok_9f8e7d6c5b4a",
    "wifi": "Correct Horse 42 Battery",
    "ssid": "TheFamilyNetwork",
    "bearer": "b3arerAbcdef0123",
    "reason": "reas0n-secret-11",
    "unit": "un1t-environment-5",
}


def texts(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        members = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar.getmembers()}
        assert all(member.isfile() and member.mode == 0o600 for member in tar.getmembers())
        return {name: content.read().decode() for name, content in members.items() if content is not None}


def make(patient: Patient, words: dict[str, str], **changes: object) -> dict[str, str]:
    def ask(command: Sequence[str]) -> Answer:
        return Answer(0, words[command[0]]) if command[0] in words else Answer(None, "not installed")

    out = patient.path.parent / "diag.tar.gz"
    arguments = argparse.Namespace(config=patient.path, out=out, **changes)
    assert cli.run(arguments, Machine(patient.root, ask)) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    return texts(out)


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    """A device that is down, with a secret in every place that the bundle looks at."""
    patient = Patient(tmp_path, sync=False)
    (tmp_path / "broker.password").write_text(SECRETS["file"] + "\n")
    key = f"-----BEGIN EC PRIVATE KEY-----\n{SECRETS['key']}\n-----END EC PRIVATE KEY-----\n"
    (tmp_path / "client.key").write_text(key)
    (tmp_path / "client.key").chmod(0o600)
    patient.path.write_text(
        patient.path.read_text() + f'[sync]\nbroker = "mqtt://edge:{SECRETS["url"]}@broker"\nusername = "edge"\n'
        f'password = "{SECRETS["inline"]}"\npassword_file = "broker.password"\nkey = "client.key"\n'
    )
    commit(store_settings(patient.state), entries(0, 10))
    engine = EngineFacts(
        name="onnxruntime", model="digits@1", state="backoff", reason=f"Traceback: token={SECRETS['reason']}\n"
    )
    (patient.runtime / "status.json").write_bytes(msgspec.json.encode(ready(engines=(engine,))))
    (patient.state / "sync").mkdir()
    link = LinkFacts(state="waiting", reason=f"mqtt://edge:{SECRETS['url']}@broker refused {SECRETS['file']}")
    (patient.state / "sync/status.json").write_bytes(msgspec.json.encode(link))
    return patient


WORDS = {
    "journalctl": "\n".join(
        [
            f"edged-sync[7]: login as edge with {SECRETS['file']} refused",
            f"wpa_supplicant[1]: psk={SECRETS['wifi']}",
            f"wpa_supplicant[1]: Trying to associate with SSID '{SECRETS['ssid']}'",
            f'wpa_supplicant[1]: ssid="{SECRETS["ssid"]}"',
            f"curl[9]: Authorization: Bearer {SECRETS['bearer']}",
            f'agent[9]: {{"token": "{SECRETS["token"]}"}}',
            f"key: {SECRETS['key']}",
            f"edged[3]: {SECRETS['inline']}",
            "edged[3]: an innocent line",
        ]
    ),
    "systemctl": f"Environment=EDGED_PASSWORD={SECRETS['unit']}\nActive: active (running)\n",
    "lsusb": "Bus 001 Device 002: ID 18d1:9302\n",
}


def test_no_planted_secret_reaches_the_bundle(patient: Patient) -> None:
    found = make(patient, WORDS)
    for name, text in found.items():
        for what, secret in SECRETS.items():
            assert secret not in text, f"{what} in {name}"
    assert "an innocent line" in found["journal.txt"]
    assert "Active: active" in found["units.txt"]
    assert 'state_dir = "' in found["edged.toml"]
    assert "Traceback" in found["workers.txt"]
    assert "edged is not running" in found["status.json"]


def test_without_the_redactor_every_planted_secret_would_stand_there(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Redactor, "redact", lambda _, text: text)
    monkeypatch.setattr(Redactor, "leaks", lambda _, text: False)
    whole = "\n".join(make(patient, WORDS).values())
    assert [what for what, secret in SECRETS.items() if secret not in whole] == []


def test_a_text_in_which_a_known_secret_stays_is_left_out(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redactor, "redact", lambda _, text: text)
    found = make(patient, WORDS)
    assert SECRETS["file"] not in "".join(found.values())
    assert found["journal.txt"].startswith("left out")


def test_the_bundle_is_bounded_and_keeps_the_newest_of_a_log(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "TAKEN_CHARS", 96 << 10)
    monkeypatch.setattr(bundle, "PART_BYTES", 64 << 10)
    log = "".join(f"edged[1]: line {number} {'x' * 80}\n" for number in range(4000))
    found = make(patient, {"journalctl": log})
    assert len(found["journal.txt"].encode()) <= bundle.PART_BYTES
    assert found["journal.txt"].rstrip().endswith("x" * 80)
    assert "line 3999" in found["journal.txt"]
    members = json.loads(found["manifest.json"])["members"]
    assert next(one for one in members if one["name"] == "journal.txt")["cut_bytes"] > 0


def test_a_file_that_is_no_configuration_at_all_gives_a_bundle_without_its_secrets(patient: Patient) -> None:
    patient.path.write_text('[sync\npassword_file = "broker.password"\npassword = "inl1ne-Passw0rd"\n')
    found = make(patient, WORDS)
    assert SECRETS["file"] not in found["journal.txt"]
    assert SECRETS["inline"] not in "".join(found.values())
    assert "cannot be gathered" in found["status.json"]


def test_nothing_is_overwritten_or_left_behind(patient: Patient, tmp_path: Path) -> None:
    out = tmp_path / "there.tar.gz"
    out.write_text("mine")
    with pytest.raises(EdgedError, match="exists"):
        bundle.write(out, "d", [], Redactor())
    with pytest.raises(EdgedError, match="cannot be written"):
        bundle.write(tmp_path / "no" / "x.tar.gz", "d", [], Redactor())

    def broken() -> object:
        yield "a.txt", "text"
        raise OSError(28, "No space left on device")

    with pytest.raises(EdgedError, match="No space"):
        bundle.write(tmp_path / "y.tar.gz", "d", broken(), Redactor())  # type: ignore[arg-type]  # fails on purpose
    assert sorted(path.name for path in tmp_path.glob("*y.tar*")) == []
    assert out.read_text() == "mine"


def test_a_running_daemon_tells_its_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Device(tmp_path, 1) as device:
        device.start("daemon")
        device.wait_ready()
        out = tmp_path / "diag.tar.gz"
        assert main(["diag", "--out", str(out), "--config", str(device.config)]) == 0
        found = texts(out)
        assert "edged_" in found["metrics.txt"]
        assert found["status.json"].startswith("the daemon answers")
        assert '"digits"' in found["models.json"]
        assert str(out) in capsys.readouterr().out
