"""``scripts/deploy-edge.sh``: what it refuses, that a dry run changes nothing, and whole deployments in empty roots.

The roots are made by mmdebstrap once (kept under ``.cache/``), each test has an overlay of one, without a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.parts import SEARCH_PATH, missing, program, require
from tests.support.tree import ROOT

SCRIPT = ROOT / "scripts" / "deploy-edge.sh"
CACHE = ROOT / ".cache" / "deploy"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
# What dpkg and the tools that it runs keep for themselves, and what purging Debian's systemd leaves; none is edged's.
OURS_NOT = ("var/log", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/lib/systemd", "etc/ld.so.cache", "tmp", "run",
            "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "var/lib/pam", "etc/.pwd.lock",
            "etc/machine-id", "etc/udev", "usr/lib/udev/hwdb.bin", "usr/lib/python3", "usr/share/python3", "etc/mtab",
            "root/.ssh", "var/lib/private")  # fmt: skip
USERS = ("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow")  # system users of Debian's systemd stay in them
PROFILE = ("generic", "base", "cpu")


def deploy(*arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *arguments], capture_output=True, text=True, timeout=60, check=False)


# On any machine


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("toaster", "small", "cpu"), "DEVICE_TYPE 'toaster' is not known"),
        (("generic", "huge", "cpu"), "MODEL_SIZE 'huge' is not known"),
        (("generic", "small", "quantum"), "HARDWARE_TARGET 'quantum' is not known"),
        (("../device/generic", "small", "cpu"), "is not known"),
        (("", "small", "cpu"), "DEVICE_TYPE '' is not known"),
        (("arm", "small", "loihi2"), "arm has no HARDWARE_TARGET 'loihi2'"),
        (("jetson", "small", "loihi2"), "jetson has no HARDWARE_TARGET 'loihi2'"),
        (("nuc", "small", "tensorrt"), "nuc has no HARDWARE_TARGET 'tensorrt'"),
        (("nuc", "small", "loihi2"), "needs Python 3.10"),
        (("generic", "small"), "three words are needed"),
        (("generic", "small", "cpu", "--force"), "unknown option: --force"),
        (("generic", "small", "cpu", "--from"), "--from needs a value"),
        (("--uninstall", "generic"), "takes no profile"),
    ],
)
def test_what_cannot_be_deployed_is_refused_by_name(words: tuple[str, ...], said: str) -> None:
    done = deploy(*words, "--dry-run") if "--from" not in words else deploy(*words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "would" not in done.stdout


def test_a_target_whose_engine_this_release_lacks_is_refused_by_name(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "edged").mkdir()
    config = checkout / "edged" / "config.py"
    config.write_text('EngineName = Literal["onnxruntime", "lava"]\n')
    script = checkout / "scripts" / "deploy-edge.sh"
    done = deploy("generic", "small", "event", "--dry-run", script=script)
    assert done.returncode == 1
    assert "HARDWARE_TARGET 'event' is not there yet: this release has no engine 'event'" in done.stderr
    config.write_text('EngineName = Literal["onnxruntime", "event", "lava"]\n')
    done = deploy("generic", "small", "event", "--dry-run", script=script)
    assert done.returncode == 0, done.stderr
    assert 'engines = ["event", "onnxruntime"]' in done.stdout


def test_the_engines_are_read_from_the_release_as_it_is() -> None:
    from edged.config import ENGINES

    done = subprocess.run(
        ["sh", "-c", f"sed -n '/^known_engines/,/^}}/p' {SCRIPT}; echo known_engines"], capture_output=True, check=True
    )
    told = subprocess.run(["bash"], input=done.stdout, env={"ROOT": str(ROOT), "FROM": "", "PATH": os.defpath},
                          capture_output=True, check=True)  # fmt: skip
    assert tuple(told.stdout.decode().split()) == ENGINES


def test_every_profile_is_whole_and_its_configuration_is_one_that_edged_takes() -> None:
    folder = ROOT / "scripts" / "profiles"

    def values(path: Path) -> dict[str, str]:
        return dict(line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#"))

    targets = {path.stem for path in (folder / "target").glob("*.conf")}
    for path in (folder / "device").glob("*.conf"):
        found = values(path)
        assert found.keys() == {"ARCH", "TARGETS", "CAP_MB", "SEGMENT_MB"}, path
        assert set(found["TARGETS"].split()) <= targets
        assert int(found["CAP_MB"]) >= 4 * int(found["SEGMENT_MB"])
    for path in (folder / "model").glob("*.conf"):
        assert (ROOT / "models" / values(path)["MODEL"] / "bundle" / "manifest.json").is_file()
    for path in (folder / "target").glob("*.conf"):
        found = values(path)
        for socket in found["SOCKETS"].split():
            assert (ROOT / "systemd" / socket).is_file(), path
        assert found["ENGINES"].split()[-1] == "onnxruntime", "there is always an engine to fall back to"


# In an empty root


def need_roots() -> None:
    require("root", "mount namespaces", "network namespaces")
    for name in ("mmdebstrap", "dpkg-deb"):
        if program(name) is None:
            missing(name, f"apt install {name}")


def base_root() -> Path:
    """An empty Debian, as its installer leaves the smallest system; made at the first use."""
    base = CACHE / "bookworm"
    if not base.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=CACHE))
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory", "bookworm"]
        made = subprocess.run([*command, str(part)], env={**os.environ, "PATH": SEARCH_PATH}, capture_output=True)
        if made.returncode:
            shutil.rmtree(part)
            missing("a Debian root", made.stderr.decode(errors="replace")[-500:])
        part.chmod(0o755)
        part.rename(base)
    return base


@pytest.fixture(scope="session")
def folder() -> Path:
    """A folder that was prepared on this machine from this checkout."""
    need_roots()
    folder = CACHE / "prepared"
    CACHE.mkdir(parents=True, exist_ok=True)
    made = subprocess.run([SCRIPT, *PROFILE, "--prepare", folder], capture_output=True, text=True, timeout=900)
    if made.returncode and "downloaded" in made.stderr:
        missing("Debian's archive", made.stderr[-500:])
    assert made.returncode == 0, made.stderr
    return folder


class Root:
    """A root of its own, with the folder at /mnt. No network reaches it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def command(self, *words: str) -> list[str]:
        inside = 'mount -t proc proc "$0/proc" && mount -t tmpfs -o mode=755 tmpfs "$0/run" && exec chroot "$0" "$@"'
        return ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private",
                "sh", "-c", inside, str(self.path), *words]  # fmt: skip

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*words), env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def deploy(self, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("/mnt/deploy-edge.sh", *(more or PROFILE), check=check)

    def tree(self) -> dict[str, str]:
        """Every path with its kind, mode, owner and content."""
        found = {}
        for path in self.path.rglob("*"):
            name = str(path.relative_to(self.path))
            if name.split("/")[0] in ("proc", "sys", "dev", "mnt") or any(
                name == one or name.startswith(f"{one}/") for one in OURS_NOT
            ):
                continue
            state = path.lstat()
            content = ""
            if stat.S_ISLNK(state.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(state.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            if name in USERS:  # only who was there at first, and ours
                content = " ".join(sorted(line for line in path.read_text().split() if "edged" in line))
            found[name] = f"{state.st_mode:o} {state.st_uid}:{state.st_gid} {content}"
        return found

    def whole_tree(self) -> dict[str, int]:
        """Every path with the time of its last change: a dry run moves none of them."""
        return {str(path): path.lstat().st_mtime_ns for path in self.path.rglob("*") if "/proc/" not in str(path)}


@pytest.fixture
def root(folder: Path, tmp_path: Path) -> Iterator[Root]:
    memory = tmp_path / "memory"  # dpkg waits for the medium some hundred times
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", memory], check=True)
    upper, work, mounted = (memory / name for name in ("upper", "work", "root"))
    for each in (upper, work, mounted):
        each.mkdir()
    options = f"lowerdir={base_root()},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, mounted], check=True)
    try:
        subprocess.run(["mount", "--bind", "-o", "ro", folder, mounted / "mnt"], check=True)
        yield Root(mounted)
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", mounted], check=False)
        subprocess.run(["umount", "--lazy", memory], check=True)


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_empty_device_without_a_network_is_deployed_twice_and_cleared(root: Root) -> None:
    empty, times = root.tree(), root.whole_tree()
    plan = root.deploy(*PROFILE, "--dry-run")
    assert "would write /etc/edged/edged.toml" in plan.stdout
    assert root.whole_tree() == times, "a dry run changes nothing"

    started = time.monotonic()
    first = root.deploy()
    print(f"\nfrom nothing to deployed, without a network: {time.monotonic() - started:.0f} s")
    assert "generic base cpu: deployed" in first.stderr
    enabled = root.run("systemctl", "is-enabled", "edged.service", "edged.socket", "edged-worker-onnxruntime.socket")
    assert set(enabled.stdout.split()) == {"enabled"}
    told = root.run("edged", "check")
    assert "pipeline digits: model /usr/local/share/edged/models/spikeformer_digits on onnxruntime" in told.stdout
    assert root.run("edged", "doctor", "--quick", check=False).returncode == 3, "it is configured, and does not run yet"

    deployed = root.tree()
    again = root.deploy()
    assert "there was nothing to do" in again.stderr
    changed = difference(deployed, root.tree())
    assert changed == [], changed

    config = root.path / "etc/edged/edged.toml"
    config.write_text(config.read_text().replace("cap_mb = 1024", "cap_mb = 999"))
    assert "was changed by hand and stays" in root.deploy().stderr
    assert "cap_mb = 999" in config.read_text()

    root.deploy("--uninstall")
    left = difference(empty, root.tree())
    assert left == [], left
    assert "edged is gone" in root.deploy("--uninstall").stderr, "twice is no error"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_deployment_that_is_cut_anywhere_is_finished_by_the_next_run(root: Root) -> None:
    empty = root.tree()
    for cut_s in (0.7, 3.0, 9.0):
        with subprocess.Popen(root.command("/mnt/deploy-edge.sh", *PROFILE), env=ENVIRONMENT,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:  # fmt: skip
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(cut_s)
            running.kill()  # and with it everything in its namespace
    root.deploy()
    assert "there was nothing to do" in root.deploy().stderr
    root.run("edged", "check")
    assert root.run("dpkg", "--audit").stdout == ""
    root.deploy("--uninstall")
    left = difference(empty, root.tree())
    assert left == [], left


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_damaged_folder_is_refused_and_results_are_not_thrown_away(root: Root, folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "models" / "spikeformer_digits" / "golden.npz").write_bytes(b"x")
    times = root.whole_tree()
    shutil.copytree(damaged, root.path / "srv/damaged")
    refused = root.run("/srv/damaged/deploy-edge.sh", *PROFILE, check=False)
    assert refused.returncode == 1
    assert "is damaged" in refused.stderr
    assert {name for name in root.whole_tree().keys() - times.keys() if "/srv/" not in name} <= {
        f"{root.path}/var/lib/edged-deploy", f"{root.path}/var/lib/edged-deploy/before"
    }  # fmt: skip
    root.deploy()
    spool = root.path / "var/lib/edged/spool"
    shutil.copy(root.path / "usr/share/edged/examples/seven.npy", spool / "seven.npy")
    root.run("sh", "-c", "timeout -s TERM 20 edged run --config /etc/edged/edged.toml >/dev/null 2>&1 || true")
    assert not list(spool.glob("*.npy"))
    refused = root.deploy("--uninstall", check=False)
    assert refused.returncode == 1
    assert "this device holds results" in refused.stderr
    root.deploy("--uninstall", "--discard-results")
    assert not (root.path / "var/lib/edged").exists()
