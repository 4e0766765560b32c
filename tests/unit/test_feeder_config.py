"""Settings of feeders: every mistake by name, from the file and from flags, and no credential in what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.check import feeders
from edged.config import load, validate
from edged.errors import ConfigError
from edged.feeder_config import EventsFeeder, MqttFeeder, RtspFeeder
from edged.feeders import cli
from edged.feeders.credentials import password
from edged.feeders.kit import ExitCode
from edged.settings import InvalidSettings, Problem, parse
from tests.support.device import BUNDLE as DIGITS

TOPIC = {"filter": "plant/+/vibration", "payload": "json", "key": "field:id"}
GOOD: dict[str, dict[str, Any]] = {
    "events": {"name": "yard", "model": "nmnist", "path": "recordings"},
    "mqtt": {"name": "yard", "model": "digits", "broker": "mqtt://broker", "topic": [TOPIC]},
    "rtsp": {"name": "yard", "model": "digits", "url": "rtsp://camera:8554/stream?channel=1"},
}
BAD = [
    ("events", {"path": "-"}, "format"),
    ("events", {"path": "-", "format": "bs2", "speed": 1.0}, "speed"),
    ("events", {"format": "raw"}, "format"),
    ("events", {"keep": "some"}, "keep"),
    ("events", {"name": "a b"}, "name"),
    ("mqtt", {"broker": "http://broker"}, "broker"),
    ("mqtt", {"broker": "mqtt://"}, "broker"),
    ("mqtt", {"broker": "mqtt://broker:99999"}, "broker"),
    ("mqtt", {"broker": "mqtt://broker/path"}, "broker"),
    ("mqtt", {"topic": []}, "topic"),
    ("mqtt", {"ca": "ca.pem"}, "ca"),
    ("mqtt", {"broker": "mqtts://broker", "cert": "cert.pem"}, "cert"),
    ("mqtt", {"in_flight": 0}, "in_flight"),
    ("mqtt", {"password_env": "SECRET"}, "username"),
    ("mqtt", {"username": "u", "password_env": "SECRET", "password_file": "f"}, "password_env"),
    ("rtsp", {"url": "http://camera/"}, "url"),
    ("rtsp", {"url": "rtsp:///stream"}, "url"),
    ("rtsp", {"width": 8}, "width"),
    ("rtsp", {"rate_hz": -1.0}, "rate_hz"),
    ("rtsp", {"transport": "sctp"}, "transport"),
]
BAD_TOPICS = [
    ({"filter": "a/#/b"}, "filter"),
    ({"filter": "a/b+"}, "filter"),
    ({"filter": ""}, "filter"),
    ({"key": "mid"}, "key"),
    ({"key": "field:"}, "key"),
    ({"payload": "raw"}, "key"),
    ({"payload": "raw", "key": "digest", "values": "x"}, "values"),
    ({"payload": "xml"}, "payload"),
    ({"shape": [0]}, "shape"),
    ({"dtype": "int64"}, "dtype"),
]


def problems_of(kind: str, table: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    parse(cli.KINDS[kind], table, problems, base=Path("/base"))
    return problems


@pytest.mark.parametrize("kind", GOOD)
def test_good_settings_are_taken(kind: str) -> None:
    assert problems_of(kind, GOOD[kind]) == []


@pytest.mark.parametrize(("kind", "changed", "named"), BAD)
def test_a_bad_setting_is_named(kind: str, changed: dict[str, Any], named: str) -> None:
    assert [problem.key for problem in problems_of(kind, GOOD[kind] | changed)] == [named]


@pytest.mark.parametrize(("changed", "named"), BAD_TOPICS)
def test_a_bad_rule_of_a_topic_is_named(changed: dict[str, Any], named: str) -> None:
    assert [p.key for p in problems_of("mqtt", GOOD["mqtt"] | {"topic": [TOPIC | changed]})] == [f"topic[0].{named}"]


@pytest.mark.parametrize(
    ("kind", "field", "url"),
    [
        ("mqtt", "broker", "mqtt://user:hunter2@broker"),
        ("mqtt", "broker", "mqtt://user:hunter2@"),
        ("rtsp", "url", "rtsp://user:hunter2@camera/stream"),
        ("rtsp", "url", "http://user:hunter2@camera/stream"),
        ("rtsp", "url", "http://camera/stream?password=hunter2"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(kind: str, field: str, url: str) -> None:
    told = problems_of(kind, GOOD[kind] | {field: url})
    assert [problem.key for problem in told] == [field]
    assert "hunter2" not in str(told[0])


def test_a_password_in_the_settings_is_refused_and_not_repeated() -> None:
    told = problems_of("rtsp", GOOD["rtsp"] | {"password": "hunter2"})
    assert [problem.key for problem in told] == ["password"]
    assert "hunter2" not in str(told[0]) and "did you mean 'password_env'" in str(told[0])


def write(path: Path, tables: str) -> Path:
    (path / "bundle").mkdir()
    file = path / "edged.toml"
    file.write_text(f'[device]\nid = "edge-1"\nruntime_dir = "run"\n[sync]\nbroker = "x"\n{tables}')
    return file


def test_a_feeder_is_found_by_its_name_beside_what_is_not_its_business(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '[[pipeline]]\nname = "broken"\n'
        '[[feeder]]\ntype = "events"\nname = "a"\nmodel = "nmnist"\npath = "rec"\n'
        '[[feeder]]\ntype = "rtsp"\nname = "b"\nmodel = "digits"\nurl = "rtsp://camera/x"\n',
    )
    settings, socket = cli._from_file(file, "a")
    assert settings == EventsFeeder(name="a", model="nmnist", path=tmp_path / "rec")
    assert socket == tmp_path / "run" / "http.sock"
    assert isinstance(cli._from_file(file, "b")[0], RtspFeeder)
    with pytest.raises(ConfigError, match="0 feeders have the name 'c'"):
        cli._from_file(file, "c")


def test_every_mistake_of_every_feeder_is_told_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, '[[feeder]]\ntype = "rtps"\n[[feeder]]\ntype = "rtsp"\nname = "b"\nurl = "x"\n')
    with pytest.raises(InvalidSettings) as caught:
        cli._from_file(file, "b")
    assert {problem.key for problem in caught.value.problems} == {"feeder[0].type", "feeder[1].model"}


def test_flags_are_the_same_settings(tmp_path: Path) -> None:
    command = (
        "mqtt --name yard --model digits --broker mqtt://broker --in-flight 4 --session-hours 0.5 --socket /s.sock"
    )
    topic = ["--topic-filter", "a/+", "--topic-payload", "raw", "--topic-key", "digest", "--topic-shape", "1,8,8"]
    settings, socket = cli._settings(cli._parser().parse_args([*command.split(), *topic]))
    assert isinstance(settings, MqttFeeder)
    assert (settings.in_flight, settings.session_hours, socket) == (4, 0.5, Path("/s.sock"))
    assert (settings.topic[0].filter, settings.topic[0].shape) == ("a/+", (1, 8, 8))
    cut, _ = cli._settings(cli._parser().parse_args(["events", "--model", "m", "--path", "r", "--cut", "--speed", "1"]))
    assert isinstance(cut, EventsFeeder)
    assert (cut.cut, cut.speed, cut.path, cut.name) == (True, 1.0, Path.cwd() / "r", "events")


def test_bad_flags_end_with_a_configuration_error(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rtsp", "--model", "digits", "--url"]
    assert cli.main([*command, "rtsp://camera/", "--rate-hz", "fast", "--timeout-s", "0"]) == ExitCode.CONFIG
    said = capsys.readouterr().err
    assert "rate_hz" in said and "timeout_s" in said
    assert cli.main([*command, "rtsp://u:hunter2@camera/"]) == ExitCode.CONFIG
    said = capsys.readouterr().err
    assert "url" in said and "hunter2" not in said


def test_a_password_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    monkeypatch.setenv("CAMERA_SECRET", "hunter3")
    assert password(tmp_path / "secret", "") == "hunter2"
    assert password(None, "CAMERA_SECRET") == "hunter3"
    assert password(None, "") is None
    with pytest.raises(ConfigError, match="No such file"):
        password(tmp_path / "gone", "")
    with pytest.raises(ConfigError, match="no GONE"):
        password(None, "GONE")


def test_check_says_which_feeder_nobody_listens_to(tmp_path: Path) -> None:
    (tmp_path / "edged.toml").write_text(
        '[device]\nid = "edge-1"\nstate_dir = "state"\nruntime_dir = "run"\n'
        f'[[pipeline]]\nname = "a"\nmodel = "{DIGITS}"\n[[pipeline.source]]\ntype = "http"\nname = "requests"\n'
        '[[pipeline]]\nname = "b"\nmodel = "nmnist"\n[[pipeline.source]]\ntype = "spool"\nname = "s"\npath = "s"\n'
        '[[feeder]]\ntype = "rtsp"\nname = "heard"\nmodel = "digits"\nurl = "rtsp://camera/x"\n'
        '[[feeder]]\ntype = "events"\nname = "deaf"\nmodel = "nmnist"\npath = "rec"\n'
    )
    heard, deaf = feeders(load(tmp_path / "edged.toml"))
    assert (heard.what, heard.problem) == ("feeder heard", "")
    assert deaf.problem == "no pipeline with model nmnist has a source of type http"


def test_two_feeders_of_one_name_are_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    feeder = GOOD["events"] | {"type": "events"}
    table = {"device": {"id": "a"}, "pipeline": [], "feeder": [feeder, feeder | {"path": "-"}]}
    with pytest.raises(InvalidSettings) as caught:
        validate(table, tmp_path)
    assert {problem.key for problem in caught.value.problems} >= {"feeder.name", "feeder[1].format"}
