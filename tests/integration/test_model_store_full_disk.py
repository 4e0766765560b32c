"""Models on a disk that is full: nothing is half installed, every way back is open. The control: no spare."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edged.bundle.store import files
from edged.bundle.store.states import State
from edged.bundle.store.store import ModelStoreError
from edged.errors import BundleError
from tests.support.store import NAME, packed, record_of
from tests.support.store_acts import (
    activate,
    begin,
    digest,
    install,
    opened,
    problem_now,
)


def fill(disk: Path) -> None:
    """Somebody else takes every byte that is free."""
    with (disk / "somebody-elses").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def test_on_a_full_disk_nothing_is_half_installed_and_every_way_back_is_open(tars: Path, small_disk: Path) -> None:
    state = small_disk / "state"
    state.mkdir()
    store = opened(state)
    for counter in (1, 2):
        shutil.copy(tars / f"digits-{counter}.tar", state)
        activate(store, counter)
    shutil.copy(tars / "digits-3.tar", state)
    fill(small_disk)
    with pytest.raises(ModelStoreError, match="no room"):
        install(3)(store)
    assert not problem_now(store)
    now = store.roll_back(NAME, "by command")  # the spare makes room for the record
    assert now is not None and now.release_counter == 1
    fill(small_disk)
    store.discard(NAME, digest(store, State.ROLLED_BACK))  # frees what the next record needs
    assert not problem_now(store)
    store.close()
    store.open(daemon=True)
    assert [slot.state for slot in record_of(store).slots] == [State.ACTIVE]
    store.close()


def test_a_disk_that_fills_while_it_is_unpacked_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    state = small_disk / "state"
    state.mkdir()
    store = opened(state)
    packed(tmp_path, None, 1).rename(tmp_path / "digits-1.tar")
    shutil.copy(tmp_path / "digits-1.tar", state)
    activate(store, 1)
    big = packed(tmp_path, None, 2, size=1_300_000)  # its archive fits, and promises to; what is unpacked does not
    shutil.copy(big, state)
    with (small_disk / "somebody-elses").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(small_disk).f_bavail * 4096 - 1_000_000)
    original = shutil.disk_usage
    shutil.disk_usage = lambda path: original(path)._replace(free=1 << 40)  # somebody else was faster
    try:
        with pytest.raises(BundleError, match="No space left"):
            install(2)(store)
    finally:
        shutil.disk_usage = original
    assert not problem_now(store)
    assert [slot.state for slot in record_of(store).slots] == [State.ACTIVE]
    store.close()


def test_control_without_the_spare_a_full_disk_locks_the_store(
    tars: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "keep_spare", lambda _: None)
    state = small_disk / "state"
    state.mkdir()
    store = opened(state)
    for counter in (1, 2):
        shutil.copy(tars / f"digits-{counter}.tar", state)
        activate(store, counter)
    fill(small_disk)
    with pytest.raises(ModelStoreError, match="No space left"):
        store.roll_back(NAME, "by command")
    assert [slot.state for slot in record_of(store).slots] == [State.PREVIOUS, State.ACTIVE]
    assert not problem_now(store)
    store.close()


def test_a_trial_whose_failure_cannot_be_written_down_ends_all_the_same(
    tars: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "keep_spare", lambda _: None)
    state = small_disk / "state"
    state.mkdir()
    store = opened(state)
    for counter in (1, 2):
        shutil.copy(tars / f"digits-{counter}.tar", state)
    activate(store, 1)
    install(2)(store)
    begin(store)
    fill(small_disk)
    now = store.fail(NAME, digest(store, State.TRIAL), "golden")
    assert now is not None and now.release_counter == 1
    assert store.current(NAME) == now
    store.close()
    store.open(daemon=True)  # still full: the start of the trial cannot be counted, so it does not start
    current = store.current(NAME)
    assert current is not None and current.release_counter == 1
    store.close()
