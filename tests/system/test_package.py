"""The Debian package's life on a machine with systemd as process 1: installed, upgraded, taken back, purged."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.package import as_version, install, package
from tests.support.parts import missing, optional
from tests.support.pid1 import BARE, Machine, machine, need_machine
from tests.support.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def edge() -> Iterator[Machine]:
    need_machine()
    package()
    with machine() as booted:
        yield booted


def drop_a_seven(edge: Machine, name: str) -> None:
    seven = "/usr/share/edged/examples/seven.npy"
    edge.run(
        "sh",
        "-c",
        f"cp {seven} /var/lib/edged/spool/.{name} && mv /var/lib/edged/spool/.{name} /var/lib/edged/spool/{name}.npy",
    )


def results(edge: Machine) -> list[tuple[str, int, str]]:
    """Epoch, number and key of every result."""
    lines = edge.run("edged", "results", "--json", "--limit", "1000", check=False).stdout.splitlines()
    return [(row["epoch"], row["seq"], row["key"]) for row in map(json.loads, lines)]


def installed_models(edge: Machine) -> str:
    return edge.run("edged", "model", "list").stdout


def configure_for_unsigned(edge: Machine) -> None:
    text = edge.run("cat", "/etc/edged/edged.toml").stdout
    edge.put("/etc/edged/edged.toml", text + "\n[models]\nallow_unsigned = true\n")
    edge.run("systemctl", "restart", "edged.service")


def leftovers(edge: Machine) -> list[str]:
    """Whatever is left of the package, its users included; the journal tells of the past, and may."""
    found = edge.run("find", "/", "-xdev", "-path", "/var/log", "-prune", "-o", "-path", "/proc", "-prune", "-o",
                     "-path", "/var/tmp/edged.deb", "-o", "-iname", "*edged*", "-print").stdout.split()  # fmt: skip
    # systemd itself keeps a note of each unit that ran until the next boot.
    found += edge.run(
        "find", "/run", "-path", "/run/systemd", "-prune", "-o", "-iname", "*edged*", "-print"
    ).stdout.split()
    found += edge.run(
        "sh", "-c", "grep -h edged /etc/passwd /etc/group /etc/shadow /etc/gshadow || true"
    ).stdout.split()
    return found


def test_results_and_models_outlive_upgrade_and_downgrade_and_a_purge_leaves_nothing(
    edge: Machine, tmp_path: Path
) -> None:
    before = leftovers(edge)
    began = time.monotonic()
    install(edge, package())
    drop_a_seven(edge, "first")
    edge.eventually(lambda: len(results(edge)) == 1, within_s=60)
    print(f"from the package to the first result: {time.monotonic() - began:.1f} s")
    configure_for_unsigned(edge)
    edge.run("edged", "model", "install", "/usr/share/edged/models/digits")
    models = installed_models(edge)
    assert "digits" in models
    first = results(edge)
    configuration = edge.run("cat", "/etc/edged/edged.toml").stdout
    for count, version in enumerate(("99.0", "0.0.1"), start=2):
        install(edge, as_version(package(), version, tmp_path))
        assert edge.run("dpkg-query", "--show", "--showformat=${Version}", "edged").stdout == version
        assert edge.show("edged.service", "ActiveState") == "active"
        drop_a_seven(edge, f"after-{version}")
        edge.eventually(lambda: len(results(edge)) == count, within_s=60)  # noqa: B023  called before the next turn
        assert results(edge)[: len(first)] == first
        assert installed_models(edge) == models
        assert edge.run("cat", "/etc/edged/edged.toml").stdout == configuration
    edge.run("dpkg", "--remove", "edged", timeout_s=120)
    assert edge.run("sh", "-c", "ls /opt/edged || true").stdout == ""
    assert "segment" in edge.run("ls", "/var/lib/edged/buffer").stdout  # a removal keeps what was measured
    assert edge.run("systemctl", "list-units", "--plain", "--no-legend", "edged*").stdout == ""
    edge.run("dpkg", "--purge", "edged", timeout_s=120)
    assert sorted(leftovers(edge)) == sorted(before)


def documented_command() -> str:
    """The one command of the installation guide."""
    text = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    return re.search(r"^apt-get install .*$", text, re.MULTILINE)[0]  # type: ignore[index]  # or the test fails


def test_one_documented_command_leads_from_nothing_to_the_first_result() -> None:
    """On a root without any Python. It asks Debian's archive for what the package depends on."""
    deb = package()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8080)) == 0:
            optional("port 8080", "somebody listens there, and this machine shares its network with the device")
    with machine(BARE, online=True) as bare:
        assert bare.run("sh", "-c", "command -v python3", check=False).returncode != 0
        update = bare.run("apt-get", "-qq", "update", "--error-on=any", check=False, timeout_s=300)
        if update.returncode:
            missing("Debian's archive", update.stderr[-300:])
        bare.run("sh", "-c", "cat >/srv/edged_0_amd64.deb", stdin=deb.read_bytes())
        began = time.monotonic()
        done = bare.run("sh", "-c", f"cd /srv && {documented_command()}", timeout_s=500)
        print(f"from nothing to the first result: {time.monotonic() - began:.0f} s")
        assert '"label":"7"' in done.stdout.splitlines()[-1], done.stdout[-500:]


def test_the_package_is_in_order() -> None:
    """What lintian would say first, and what a person looks at."""
    deb = package()
    fields = subprocess.run(["dpkg-deb", "--field", str(deb)], capture_output=True, text=True, check=True).stdout
    for field in ("Package: edged", "Architecture: ", "Depends: python3", "Description: ", "Maintainer: "):
        assert field in fields
    listed = subprocess.run(["dpkg-deb", "--contents", str(deb)], capture_output=True, text=True, check=True).stdout
    lines = listed.splitlines()
    modes = {line.split()[-1] if "->" not in line else line.split()[-3]: line.split()[:2] for line in lines}
    assert all(owner == "root/root" for _, owner in modes.values())
    assert [name for name, (mode, _) in modes.items() if mode[8] == "w" and mode[0] != "l"] == []
    assert [name for name, (mode, _) in modes.items() if "s" in mode[:10]] == []
    tops = {name.split("/")[1] for name in modes if name.count("/") > 1}
    assert tops == {"opt", "usr"}
    for wanted in (
        "usr/bin/edged",
        "usr/bin/edged-feed",
        "usr/lib/systemd/system/edged-worker-tensorrt@.service.d/20-tensorrt.conf",
        "opt/edged/bin/python",
        "usr/share/doc/edged/copyright",
        "usr/lib/systemd/system/edged.service",
    ):
        assert f"./{wanted}" in modes
    assert not [name for name in modes if "lava@" in name or "/.git" in name or "cpython-310" in name]


def test_the_same_checkout_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (package("--version", "0.0.7", "--out", str(tmp_path / name)) for name in ("one", "two"))
    assert _members(first) == _members(second)
    assert hashlib.sha256(first.read_bytes()).hexdigest() == hashlib.sha256(second.read_bytes()).hexdigest()


def _members(deb: Path) -> set[tuple[str, int, int, str]]:
    """Name, mode, date and digest of everything in a package: what differs is then told by its name."""
    members = set()
    for part in ("--ctrl-tarfile", "--fsys-tarfile"):
        with tarfile.open(fileobj=io.BytesIO(subprocess.check_output(["dpkg-deb", part, str(deb)]))) as tar:
            for one in tar:
                content = tar.extractfile(one) if one.isfile() else None
                digest = hashlib.sha256(content.read() if content else one.linkname.encode()).hexdigest()
                members.add((f"{part}: {one.name}", one.mode, int(one.mtime), digest))
    return members


def test_the_build_refuses_what_it_cannot_build() -> None:
    """The control: a wrong argument is named, and nothing is built."""
    done = subprocess.run([ROOT / "scripts/build-deb", "--arch", "sparc"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no packages for sparc" in done.stderr
