"""The settings of edged-sync: every error at once, and what belongs to the daemon is passed over."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cloud_sync.device.cli import ExitCode, main
from cloud_sync.device.settings import validate
from edged.settings import InvalidSettings

DEVICE = {"id": "cam-1", "state_dir": "state", "runtime_dir": "/run/edged", "something": "of the daemon's"}


def problems(table: dict[str, Any], base: Path = Path("/nowhere")) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as error:
        validate(table, base)
    return {problem.key: problem.hint for problem in error.value.problems}


def test_a_whole_configuration_is_understood(tmp_path: Path) -> None:
    for name in ("ca.pem", "c.pem", "k.pem", "secret"):
        (tmp_path / name).touch()
    table = {
        "device": DEVICE,
        "pipeline": [{"anything": 1}],
        "sync": {
            "broker": "mqtts://broker.example",
            "root": "plant",
            "fleet": "north",
            "ack": "central",
            "ca": "ca.pem",
            "cert": "c.pem",
            "key": str(tmp_path / "k.pem"),
            "username": "cam-1",
            "password_file": "secret",
        },
    }
    settings = validate(table, tmp_path)
    assert (settings.host, settings.port, settings.tls) == ("broker.example", 8883, True)
    assert settings.sync.ca == tmp_path / "ca.pem"
    assert settings.buffer_dir == tmp_path / "state" / "buffer"
    assert settings.own_dir == tmp_path / "state" / "sync"
    assert settings.daemon_status == Path("/run/edged/status.json")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("mqtt://h", ("h", 1883)),
        ("mqtt://h:1", ("h", 1)),
        ("mqtt://[::1]:1884", ("::1", 1884)),
        ("mqtts://h/", ("h", 8883)),
    ],
)
def test_a_broker_is_found_in_its_url(url: str, place: tuple[str, int]) -> None:
    settings = validate({"device": DEVICE, "sync": {"broker": url}}, Path("/x"))
    assert (settings.host, settings.port) == place


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://h", "mqtt://", "mqtt://h:0x", "mqtt://h:99999", "mqtt://h/topic", "mqtt://[::1"]
)
def test_a_broker_url_that_is_none_is_refused(url: str) -> None:
    assert "mqtt://host" in problems({"device": DEVICE, "sync": {"broker": url}})["sync.broker"]


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidSettings) as error:
        validate({"device": DEVICE, "sync": {"broker": "mqtt://me:hunter2@h"}}, Path("/x"))
    assert "hunter2" not in str(error.value)
    assert "password_file" in str(error.value)


def test_all_problems_come_at_once_with_key_and_hint() -> None:
    found = problems(
        {
            "device": {"id": "a/b"},
            "sync": {"broker": "mqtt://h", "root": "a+b", "in_flight": 0, "brokr": 1, "ack": "me", "keepalive_s": "x"},
        }
    )
    assert set(found) == {"device.id", "sync.root", "sync.in_flight", "sync.brokr", "sync.ack", "sync.keepalive_s"}
    assert "did you mean 'broker'" in found["sync.brokr"]


def test_files_and_what_goes_together_are_checked() -> None:
    sync = {"broker": "mqtt://h", "ca": "nope", "cert": "nope", "password_file": "nope"}
    found = problems({"device": DEVICE, "sync": sync})
    assert {"sync.ca", "sync.cert", "sync.password_file", "sync.username"} <= set(found)


def test_a_missing_section_is_named() -> None:
    assert set(problems({})) == {"device", "sync"}


def test_the_command_says_what_is_wrong_and_ends_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edged.toml"
    assert main(["check", "--config", str(path)]) == ExitCode.CONFIG
    path.write_text('[device]\nid = "cam-1"\n[sync]\nbroker = "ftp://h"\n')
    assert main(["run", "--config", str(path)]) == ExitCode.CONFIG
    assert "sync.broker = 'ftp://h'" in capsys.readouterr().err
    path.write_text('[device]\nid = "cam-1"\n[sync]\nbroker = "mqtt://h"\n')
    assert main(["check", "--config", str(path)]) == ExitCode.OK


def test_the_settings_in_the_documentation_are_settings() -> None:
    text = (Path(__file__).parents[2] / "docs" / "mqtt.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    found = problems({"device": DEVICE, **tomllib.loads(block)})
    assert set(found.values()) == {"no such file"}, "every key and value is one, only the files are not here"
