"""The container image and its compose file: linted, nobody is root, the daemon has no network and sync no devices."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # the package carries no types

from tests.support.parts import program
from tests.support.tree import ROOT

DOCKERFILE = ROOT / "scripts" / "container" / "Dockerfile"
COMPOSE = ROOT / "docker-compose.edge.yml"


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    hadolint = program("hadolint")
    assert hadolint is not None, "it comes with the test environment"
    return subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)


def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return loaded


def test_the_dockerfile_is_clean_and_the_linter_would_say_so_if_not(tmp_path: Path) -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && sudo apt-get install x\nUSER root\n")
    assert {"DL3002", "DL3004", "DL3006"} <= set(re.findall(r"DL\d+", lint(bad).stdout))


def test_nobody_is_root_and_nothing_can_be_gained() -> None:
    for name, service in services().items():
        uid, gid = service["user"].split(":")
        assert int(uid) > 0, name
        assert int(gid) > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        assert "mem_limit" in service, name
        assert not [volume for volume in service["volumes"] if "docker.sock" in str(volume)], name


def test_the_daemon_has_devices_and_no_network_and_sync_the_other_way_round() -> None:
    edged, sync = services()["edged"], services()["edged-sync"]
    assert edged["network_mode"] == "none"
    assert edged["devices"]
    assert "ports" not in edged
    assert "network_mode" not in sync
    assert "devices" not in sync
    assert [volume for volume in sync["volumes"] if str(volume).startswith("runtime:")] == ["runtime:/run/edged:ro"]


def test_the_users_of_compose_are_those_of_the_image() -> None:
    text = DOCKERFILE.read_text()
    for name, service in services().items():
        uid, gid = service["user"].split(":")
        assert re.search(rf"useradd --uid {uid} --gid edged [^&]*\b{name}\b", text), name
        assert f"groupadd --gid {gid} edged" in text
    assert "\nUSER 990:990\n" in text


def test_what_compose_names_is_in_the_image() -> None:
    for name, service in services().items():
        assert service["image"] == "edged:latest", name
    assert services()["edged-sync"]["entrypoint"] == ["edged-sync"]
    assert 'ENTRYPOINT ["edged"]' in DOCKERFILE.read_text()
