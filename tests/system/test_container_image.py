"""The container image: ``scripts/deploy-edge.sh`` builds it; nobody is root in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.parts import SEARCH_PATH, missing, program
from tests.support.tree import ROOT
from tests.system.test_deploy import SCRIPT, base_root, need_roots

BASE = "docker.io/library/debian:12-slim"  # what the Dockerfile begins with
SPOOL = "/var/lib/edged/spool"
INFER = (
    f"cp /usr/share/edged/examples/seven.npy {SPOOL}/; id -u; timeout -s TERM 25 edged run >/dev/null 2>&1;"
    "edged results --json"
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_image_is_built_and_infers_without_root(tmp_path: Path) -> None:
    need_roots()
    if program("buildah") is None:
        missing("buildah", "apt install buildah")
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    )
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")  # a client without its daemon: the next one is taken
    (tmp_path / "docker").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{SEARCH_PATH}",
        "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
        "BUILDAH_ISOLATION": "chroot",
    }

    def run(*words: str | Path) -> str:
        done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    scratch = run("buildah", "from", "scratch").strip()
    run("buildah", "add", "--quiet", scratch, base_root(), "/")
    run("buildah", "commit", "--quiet", "--rm", scratch, BASE)
    run(SCRIPT, "generic", "small", "cpu", "--container")
    told = json.loads(run("buildah", "inspect", "--type", "image", "localhost/edged:latest"))
    assert told["Docker"]["config"]["User"] == "990:990"
    assert told["Docker"]["config"]["Healthcheck"]["Test"] == ["CMD", "edged", "status", "--json"]
    container = run("buildah", "from", "--pull-never", "localhost/edged:latest").strip()
    uid, result = run("buildah", "run", container, "--", "sh", "-c", INFER).splitlines()
    assert uid == "990"
    assert json.loads(result)["body"]["label"] == "7"
