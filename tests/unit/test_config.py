"""Configuration: every error at once, each with key, value and hint; the good one is immutable and absolute."""

from __future__ import annotations

import termios
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged import config as settings
from edged.config import SpoolSource, load, slug, validate
from edged.domain import Policy
from edged.engines.worker.__main__ import ENGINES
from edged.errors import ConfigError
from edged.settings import InvalidSettings


def good(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "digits").mkdir(exist_ok=True)
    (tmp_path / "digits" / "manifest.json").write_text("{}")
    return {
        "device": {"id": "edge-1", "state_dir": "state", "runtime_dir": "run"},
        "pipeline": [
            {
                "name": "digits",
                "model": "digits",
                "policy": "drop-oldest",
                "source": [{"type": "spool", "name": "spool", "path": "spool"}, {"type": "http", "name": "http"}],
            }
        ],
        "sync": {"broker": "left to edged-sync"},
    }


def test_a_good_configuration_is_absolute_typed_and_immutable(tmp_path: Path) -> None:
    config = validate(good(tmp_path), tmp_path)
    pipeline = config.pipeline[0]
    assert config.device.state_dir == tmp_path / "state"
    assert pipeline.policy is Policy.DROP_OLDEST
    assert pipeline.source[0] == SpoolSource(name="spool", path=tmp_path / "spool")
    with pytest.raises(AttributeError):
        pipeline.name = "other"  # type: ignore[misc]  # that it cannot be set is the test


def test_every_error_is_told_at_once_with_key_value_and_hint(tmp_path: Path) -> None:
    table = good(tmp_path)
    table["bufer"] = {}
    table["device"] = {"id": "a b", "stat_dir": "x"}
    table["buffer"] = {"cap_mb": 9}
    table["http"] = {"host": "0.0.0.0", "port": 70000}
    replay = {"type": "replay", "name": "spool", "path": "gone", "rate_hz": 1}
    table["pipeline"] += [
        {"name": "digits", "model": "nowhere", "queue": 0, "source": []},
        {"model": "digits", "policy": "bloc", "source": [{"type": "spol"}, replay]},
    ]
    with pytest.raises(InvalidSettings) as caught:
        validate(table, tmp_path, "edged.toml")
    told = {problem.key: (problem.value, problem.hint) for problem in caught.value.problems}
    assert set(told) == {
        "bufer",
        "device.id",
        "device.stat_dir",
        "buffer.cap_mb",
        "http.host",
        "http.port",
        "pipeline[1].queue",
        "pipeline[2].name",
        "pipeline[2].policy",
        "pipeline[2].source[0].type",
        "pipeline[2].source[1].path",
        "pipeline.name",
        "pipeline.source.name",
    }
    assert told["bufer"][1] == "is not a setting; did you mean 'buffer'?"
    assert told["pipeline[2].policy"] == ("bloc", "must be block, drop-oldest or drop-newest")
    assert told["pipeline[2].name"] == (msgspec.UNSET, told["pipeline[2].name"][1])
    text = str(caught.value)
    assert text.startswith("edged.toml: 13 errors\n")
    assert "  http.port = 70000: must be a port, 0 to 65535" in text


def test_a_pipeline_needs_a_bundle_and_a_source(tmp_path: Path) -> None:
    table = good(tmp_path)
    table["pipeline"][0].update(model="./nowhere", source=[])
    with pytest.raises(InvalidSettings) as caught:
        validate(table, tmp_path)
    assert [problem.key for problem in caught.value.problems] == ["pipeline[0].source", "pipeline[0].model"]


@pytest.mark.parametrize("wrong", [[], "text", 3, {"device": []}, {"pipeline": "x"}, {"pipeline": [3]}])
def test_a_wrong_type_anywhere_is_an_error_not_a_crash(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(InvalidSettings):
        validate({**good(tmp_path), **wrong} if isinstance(wrong, dict) else {"device": wrong}, tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("a = 1\nb = ?\n")
    with pytest.raises(ConfigError, match=r"bad\.toml.*line 2"):
        load(tmp_path / "bad.toml")


def test_slug_makes_a_legal_name_of_anything() -> None:
    assert slug("my host!.local") == "my-host-.local"
    assert slug("//") == "device"


def test_every_engine_of_the_worker_can_be_configured_and_no_other() -> None:
    assert list(settings.ENGINES) == list(ENGINES)


def test_a_sensor_line_says_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    line = {"type": "serial-windows", "name": "sensor", "path": "line", "sample": "f32le", "window": 100}
    table = good(tmp_path)
    table["pipeline"][0]["source"] = [line]
    found = validate(table, tmp_path).pipeline[0].source[0]
    assert isinstance(found, settings.SerialWindowsSource)
    assert (found.path, found.hop, found.framing) == (tmp_path / "line", 0, "blocks")
    table["pipeline"][0]["source"] = [{**line, "hop": 101, "scale": 0.0, "baud": 31250}]
    with pytest.raises(InvalidSettings) as caught:
        validate(table, tmp_path)
    assert {problem.key.rpartition(".")[2] for problem in caught.value.problems} == {"hop", "scale", "baud"}
    for key, wrong in (("sample", "u8"), ("window", 0), ("channels", 65), ("framing", "lines"), ("hop", -1)):
        table["pipeline"][0]["source"] = [{**line, key: wrong}]
        with pytest.raises(InvalidSettings, match=key):
            validate(table, tmp_path)


def test_a_camera_says_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    camera = {"type": "camera", "name": "door", "device": "/dev/edged/camera"}
    table = good(tmp_path)
    table["pipeline"][0]["source"] = [camera]
    found = validate(table, tmp_path).pipeline[0].source[0]
    assert found == settings.CameraSource(name="door", device=Path("/dev/edged/camera"))
    wrong = {"format": "H264", "rate": -1, "width": 640, "height": 20000, "path": "/dev/video0"}
    table["pipeline"][0]["source"] = [{**camera, **wrong}, {**camera, "name": "two", "width": 640}, {"type": "camera"}]
    with pytest.raises(InvalidSettings) as caught:
        validate(table, tmp_path)
    told = {problem.key.removeprefix("pipeline[0]."): problem.hint for problem in caught.value.problems}
    assert set(told) == {
        "source[0].format", "source[0].rate", "source[0].height", "source[0].path",
        "source[1].height", "source[2].name", "source[2].device",
    }  # fmt: skip
    assert told["source[0].format"].startswith("must be auto, RGB3, ")
    assert told["source[1].height"].startswith("is missing: a size has both width and height")


def test_every_speed_that_a_line_may_have_is_one_that_the_system_knows() -> None:
    assert all(hasattr(termios, f"B{baud}") for baud in settings.BAUDS)


def test_an_engine_names_its_device_and_of_lava_s_only_the_chip_s_needs_one(tmp_path: Path) -> None:
    table = {**good(tmp_path), "engines": {"lava": {"device": "loihi"}, "onnxruntime": {"device": "/dev/edged/coral"}}}
    engines = validate(table, tmp_path).engines
    needed = {engine: engines.device(engine) for engine in settings.ENGINES if engines.device(engine)}
    assert needed == {"lava-loihi2": "loihi", "onnxruntime": "/dev/edged/coral"}
    table["engines"] = {"lava": {"device": "two words"}}
    with pytest.raises(InvalidSettings, match=r"engines\.lava\.device"):
        validate(table, tmp_path)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"temperature_tight_c": 96.0}, "pressure.temperature_critical_c"),
        ({"cpu_stall_critical_percent": 50.0}, "pressure.cpu_stall_critical_percent"),
        ({"memory_used_tight_percent": 101}, "pressure.memory_used_tight_percent"),
        ({"critical_share_percent": 60}, "pressure.critical_share_percent"),
        ({"tight_share_percent": 0}, "pressure.tight_share_percent"),
        ({"look_every_s": 0}, "pressure.look_every_s"),
        ({"temperature_tight": 70}, "pressure.temperature_tight"),
    ],
)
def test_limits_of_pressure_that_make_no_sense_are_named(tmp_path: Path, table: dict[str, object], key: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        validate({**good(tmp_path), "pressure": table}, tmp_path)
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"address": "board.local", "port": 22}, "board[0].address"),
        ({"address": "10.0.0.300", "port": 22}, "board[0].address"),
        ({"address": "10.0.0.5"}, "board[0].port"),
        ({"address": "10.0.0.5", "port": 70000}, "board[0].port"),
        ({"address": "10.0.0.5", "port": 22, "probe": "ping"}, "board[0].probe"),
        ({"address": "10.0.0.5", "port": 22, "deadline_s": 0}, "board[0].deadline_s"),
        ({"port": 22}, "board[0].address"),
    ],
)
def test_a_board_that_cannot_be_asked_is_named(tmp_path: Path, table: dict[str, object], key: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        validate({**good(tmp_path), "board": [{"name": "rack", **table}]}, tmp_path)
    assert [problem.key for problem in caught.value.problems] == [key]


def test_boards_have_names_of_their_own_and_the_port_of_their_probe(tmp_path: Path) -> None:
    boards = [{"name": "spin", "address": "192.168.240.253", "probe": "spinnaker"}] * 2
    assert validate({**good(tmp_path), "board": boards[:1]}, tmp_path).board[0].at == 17893
    with pytest.raises(InvalidSettings, match="is used twice"):
        validate({**good(tmp_path), "board": boards}, tmp_path)
