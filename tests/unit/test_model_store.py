"""The store on a real directory: what it takes, what it refuses, and that nothing it says is lost or half there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.bundle.archive import pack
from edged.bundle.loaded import SIGNATURE, open_bundle
from edged.bundle.signing import SignatureError, verify
from edged.bundle.store import files, incoming, requests, trust
from edged.bundle.store.record import ModelRefused, Proof
from edged.bundle.store.states import State
from edged.bundle.store.store import ModelStore, ModelStoreError, StoreHeld, current_path, read_store
from edged.errors import BundleError
from tests.support.store import NAME, Key, make_key, make_store, packed, record_of, write_bundle


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def store(tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelStore]:
    """Signatures are verified in this process: that it is another one otherwise is shown with the signatures."""
    monkeypatch.setattr(trust, "check_signature", lambda path, keys: verify(open_bundle(path), keys))
    store = make_store(tmp_path, key)
    store.open()
    yield store
    store.close()


def states(store: ModelStore) -> dict[int, str]:
    return {slot.release_counter: slot.state.value for slot in record_of(store).slots}


def prove(store: ModelStore, digest: str) -> None:
    store.prove(NAME, Proof(digest=digest, engine="event", engine_version="1", device="board"))


def activate(store: ModelStore, tar: Path) -> str:
    _, slot = store.install(tar)
    store.begin_trial(NAME, slot.digest, running=True)
    prove(store, slot.digest)
    return store.commit(NAME, slot.digest).digest


def contents(store: ModelStore) -> set[str]:
    return {path.name for path in (store.directory / NAME).iterdir()}


def test_install_trial_commit_and_back(store: ModelStore, key: Key, tmp_path: Path) -> None:
    first = activate(store, packed(tmp_path / "b", key, 1))
    second = activate(store, packed(tmp_path / "b", key, 2))
    assert states(store) == {1: "previous", 2: "active"}
    assert contents(store) == {first, second, files.STATE, files.COPY}
    assert current_path(store.directory, NAME) == store.path(NAME, second)
    back = store.roll_back(NAME, "by command")
    assert back is not None and back.digest == first
    third = activate(store, packed(tmp_path / "b", key, 3))
    assert states(store) == {1: "previous", 2: "rolled-back", 3: "active"}
    assert contents(store) == {first, second, third, files.STATE, files.COPY}


def test_the_file_is_consumed_and_its_name_says_nothing(store: ModelStore, key: Key, tmp_path: Path) -> None:
    tar = packed(tmp_path / "b", key, 1).rename(tmp_path / "anything")
    name, slot = store.install(tar)
    assert (name, slot.signer) == (NAME, "release.pem")
    assert not tar.exists()
    store.verify(NAME, slot.digest)


def test_a_store_is_read_again_as_it_was(store: ModelStore, key: Key, tmp_path: Path) -> None:
    activate(store, packed(tmp_path / "b", key, 1))
    before = store.records
    store.close()
    again = make_store(tmp_path, key)
    again.open()
    assert again.records == before == read_store(store.directory)[0]
    again.close()


def test_a_daemon_counts_its_starts_and_a_command_does_not(store: ModelStore, key: Key, tmp_path: Path) -> None:
    activate(store, packed(tmp_path / "b", key, 1))
    store.install(packed(tmp_path / "b", key, 2))
    store.begin_trial(NAME, running=False)
    for starts, daemon in ((0, False), (1, True), (1, False), (2, True), (3, True)):
        store.close()
        store.open(daemon=daemon)
        trial = record_of(store).of(State.TRIAL)
        assert trial is not None and trial.trial_starts == starts
    store.close()
    store.open(daemon=True)
    assert states(store) == {1: "active", 2: "rolled-back"}


def test_one_writer_at_a_time(store: ModelStore, key: Key, tmp_path: Path) -> None:
    other = make_store(tmp_path, key)
    with pytest.raises(StoreHeld, match="another process holds"):
        other.open(timeout_s=0)
    store.close()
    other.open(timeout_s=0)
    other.close()


@pytest.mark.parametrize("lie", ["unsigned", "stranger", "tampered", "truncated", "no bundle", "a link", "a folder"])
def test_what_is_not_a_trusted_bundle_leaves_nothing(store: ModelStore, key: Key, tmp_path: Path, lie: str) -> None:
    activate(store, packed(tmp_path / "b", key, 1))
    before, there = store.records, contents(store)
    signer = {"unsigned": None, "stranger": make_key(tmp_path, "stranger")}.get(lie, key)
    tar = packed(tmp_path / "c", signer, 2)
    data = tar.read_bytes()
    if lie == "tampered":
        (tmp_path / "c" / "digits-2-None" / SIGNATURE).write_bytes(b"{}")
        pack(tmp_path / "c" / "digits-2-None", tar)
    elif lie == "truncated":
        tar.write_bytes(data[:-700])
    elif lie == "no bundle":
        tar.write_bytes(b"MZ" * 5000)
    elif lie in ("a link", "a folder"):
        tar.rename(tmp_path / "elsewhere")
        tar.symlink_to(tmp_path / "elsewhere") if lie == "a link" else tar.mkdir()
    expected = SignatureError if lie in ("unsigned", "stranger", "tampered") else BundleError
    with pytest.raises(expected):
        store.install(tar)
    assert (store.records, contents(store)) == (before, there)
    assert not list(store.directory.glob(".arriving*"))


def test_a_replayed_older_release_is_refused(store: ModelStore, key: Key, tmp_path: Path) -> None:
    activate(store, packed(tmp_path / "b", key, 1))
    for counter in (2, 3):
        activate(store, packed(tmp_path / "b", key, counter))
    with pytest.raises(ModelRefused, match="release counter 1, 3 was committed"):
        store.install(packed(tmp_path / "b", key, 1))
    with pytest.raises(ModelRefused, match="--allow-downgrade 3"):
        store.install(packed(tmp_path / "b", key, 1, downgrade_from=2))
    _, slot = store.install(packed(tmp_path / "b", key, 1, downgrade_from=3))
    assert slot.downgrade_from == 3


def test_a_failed_model_is_not_taken_again(store: ModelStore, key: Key, tmp_path: Path) -> None:
    activate(store, packed(tmp_path / "b", key, 1))
    _, slot = store.install(packed(tmp_path / "b", key, 2))
    store.begin_trial(NAME, running=True)
    now = store.fail(NAME, slot.digest, "its golden data differs")
    assert now is not None and now.release_counter == 1
    assert slot.digest not in contents(store)
    with pytest.raises(ModelRefused, match="failed on this device before: its golden data differs"):
        store.install(packed(tmp_path / "b", key, 2))
    store.discard(NAME, slot.digest)
    store.install(packed(tmp_path / "b", key, 2))


def damage(store: ModelStore, digest: str) -> None:
    with (store.path(NAME, digest) / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\0\0\0\0\0")


def test_a_damaged_slot_is_noticed_repaired_and_never_returned_to(store: ModelStore, key: Key, tmp_path: Path) -> None:
    first = activate(store, packed(tmp_path / "b", key, 1))
    second = activate(store, packed(tmp_path / "b", key, 2))
    damage(store, first)
    with pytest.raises(BundleError, match="is damaged"):
        store.roll_back(NAME, "by command")
    assert states(store) == {1: "previous", 2: "active"}
    store.discard(NAME, first)
    with pytest.raises(ModelRefused, match="release counter"):
        store.install(packed(tmp_path / "b", key, 1))
    third = activate(store, packed(tmp_path / "b", key, 3))
    damage(store, third)
    with pytest.raises(BundleError, match="is damaged"):
        store.verify(NAME, third)
    store.install(packed(tmp_path / "b", key, 3))  # the same again
    store.verify(NAME, third)
    assert states(store) == {2: "previous", 3: "active"}
    damage(store, third)
    now = store.lose(NAME, third)
    assert now is not None and now.digest == second
    assert third not in contents(store)


@pytest.mark.parametrize("harm", [b"", b"\0" * 700, b'{"format": 1}', None])
def test_a_damaged_record_is_read_from_its_copy(
    store: ModelStore, key: Key, tmp_path: Path, harm: bytes | None
) -> None:
    activate(store, packed(tmp_path / "b", key, 1))
    before = store.records
    store.close()
    state = store.directory / NAME / files.STATE
    state.write_bytes(harm if harm is not None else state.read_bytes().replace(b'"floor":1', b'"floor":0'))
    store.open()
    assert store.records == before


def test_when_both_are_damaged_it_says_so_deletes_nothing_and_takes_the_model_again(
    store: ModelStore, key: Key, tmp_path: Path
) -> None:
    digest = activate(store, packed(tmp_path / "b", key, 1))
    store.close()
    for name in (files.STATE, files.COPY):
        (store.directory / NAME / name).write_bytes(b"\0" * 500)
    store.open(daemon=True)
    assert "its record is damaged" in store.problems[NAME]
    assert digest in contents(store)
    assert store.current(NAME) is None
    with pytest.raises(BundleError, match="damaged"):
        current_path(store.directory, NAME)
    activate(store, packed(tmp_path / "b", key, 1))
    assert (store.problems, states(store)) == ({}, {1: "active"})


def test_garbage_of_a_cut_is_cleared(store: ModelStore, key: Key, tmp_path: Path) -> None:
    digest = activate(store, packed(tmp_path / "b", key, 1))
    store.close()
    shutil.copytree(store.path(NAME, digest), store.directory / NAME / ("0" * 64))
    shutil.copytree(store.path(NAME, digest), store.directory / ".arriving-x" / "bundle")
    (store.directory / NAME / ".state.json.part").write_bytes(b"{")
    store.open()
    assert contents(store) == {digest, files.STATE, files.COPY}
    assert not (store.directory / ".arriving-x").exists()


def test_removing(store: ModelStore, key: Key, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()

    def ask(request: requests.Request) -> str:
        return requests.perform(store, request, folder, used={NAME}, running=True).message

    digest = activate(store, packed(tmp_path / "b", key, 1))
    with pytest.raises(ModelRefused, match="is used by a pipeline"):
        ask(requests.Remove(NAME))
    with pytest.raises(ModelRefused, match="is active"):
        ask(requests.Remove(NAME, digest[:8]))
    with pytest.raises(ModelRefused, match="no bundle with a digest"):
        ask(requests.Remove(NAME, "f" * 20))
    with pytest.raises(ModelRefused, match="no model faces"):
        ask(requests.Remove("faces"))
    with pytest.raises(ModelRefused, match="not the name of a file"):
        ask(requests.Install("../b/digits-1.tar"))
    requests.perform(store, requests.Remove(NAME), folder, used=(), running=True)
    assert (store.current(NAME), record_of(store).floor) == (None, 1)
    assert contents(store) == {files.STATE, files.COPY}


def test_unsigned_bundles_are_marked_where_they_are_allowed(tmp_path: Path) -> None:
    store = make_store(tmp_path, allow_unsigned=True)
    store.open()
    _, slot = store.install(packed(tmp_path / "b", None, 1))
    assert slot.signer == ""
    store.close()


def test_what_sync_leaves_is_staged_or_thrown_away_and_never_runs_by_itself(
    store: ModelStore, key: Key, tmp_path: Path
) -> None:
    folder = tmp_path / "sync" / "incoming"
    incoming.prepare(folder)
    assert folder.stat().st_mode & 0o7777 == 0o2770
    packed(tmp_path / "b", key, 1).rename(folder / "good.tar")
    packed(tmp_path / "b", None, 2).rename(folder / "unsigned.tar")
    (folder / ".unfinished").write_bytes(b"half")
    (folder / ".command-1").write_bytes(b"left behind")
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    with (folder / ".command-2").open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        incoming.prepare(folder)
    assert incoming.sweep(store, folder) == incoming.POLL_S
    assert {path.name for path in folder.iterdir()} == {".unfinished", ".command-2", "folder"}
    assert Path("/etc/passwd").exists()
    assert states(store) == {1: "staged"}
    assert store.current(NAME) is None


def test_without_room_a_download_waits(
    store: ModelStore, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = packed(tmp_path / "b", key, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ModelStoreError, match="no room"):
        store.install(tar)
    assert incoming.sweep(store, tar.parent) == incoming.PAUSE_S
    assert tar.exists()
    monkeypatch.undo()
    incoming.sweep(store, tar.parent)
    assert states(store) == {1: "staged"}


def test_changes_are_told_after_they_are_written(store: ModelStore, key: Key, tmp_path: Path) -> None:
    seen: list[dict[int, str]] = []

    def on_change() -> None:
        records, _ = read_store(store.directory)
        seen.append({slot.release_counter: slot.state.value for record in records for slot in record.slots})

    store.on_change = on_change
    activate(store, packed(tmp_path / "b", key, 1))
    store.roll_back(NAME, "x", digest="0" * 64)  # not what runs: nothing happens
    assert seen == [{1: "staged"}, {1: "trial"}, {1: "trial"}, {1: "active"}, {1: "active"}]


def test_bundles_that_share_a_name_with_another_model_keep_apart(store: ModelStore, key: Key, tmp_path: Path) -> None:
    store.install(packed(tmp_path / "b", key, 1))
    store.install(packed(tmp_path / "b", key, 1, name="faces"))
    assert [record.name for record in store.records] == ["digits", "faces"]
    assert write_bundle(tmp_path / "x", 1).digest != write_bundle(tmp_path / "y", 1, name="faces").digest
