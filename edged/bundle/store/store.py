"""The installed models: the only writer of ``<state_dir>/models``, and what may be found there after a cut.

Rules: a bundle is durable before the record that names it is written; whatever a record no longer names is deleted
after it was written. So a record never names what is not there; a cut leaves garbage at most, which ``open`` clears.
A move is decided purely (``record``), persisted, and only then told: nobody runs what is not written down.

Every call blocks (files are hashed and synchronised) and may come from any thread; reading never waits. Runs nothing:
``edged.lane`` does, and ``edged.installed`` says how it went.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from edged.bundle.archive import unpack
from edged.bundle.files import sync_directory
from edged.bundle.loaded import Bundle, open_bundle
from edged.bundle.store import files, record
from edged.bundle.store.record import ModelRefused, Proof, Record, Slot
from edged.bundle.store.states import WITH_FILES, State
from edged.bundle.store.trust import Trust
from edged.errors import BundleError, EdgedError

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 10.0  # a command without a daemon takes a second or two
MARGIN_BYTES = 1 << 20  # records, directories, and what the others on the disk write meanwhile
ARRIVING = ".arriving-"
GRAVE = ".grave-"


class ModelStoreError(EdgedError):
    """The store's files cannot be read or written (a full disk, a failing one). Nothing was changed."""

    code = "model-store"


class StoreHeld(ModelStoreError):
    """Another process writes the store."""


class ModelStore:
    """Between ``open`` and ``close``. ``on_change`` is called, from any thread, after every change."""

    def __init__(self, directory: Path, trust: Trust, *, on_change: Callable[[], None] = lambda: None) -> None:
        self.directory = directory
        self.trust = trust
        self.problems: dict[str, str] = {}  # models whose record cannot be read
        self.on_change = on_change
        self._records: dict[str, Record] = {}
        self._shunned: set[tuple[str, str]] = set()  # taken off trial, but the disk could not be told yet
        self._writing = threading.RLock()
        self._lock = -1

    # Life

    def open(self, *, daemon: bool = False, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Take the directory for oneself and bring it in order. A daemon's start counts for models on trial.

        Raises ModelStoreError; StoreHeld when somebody else holds it for ``timeout_s``.
        """
        try:
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock = files.lock(self.directory, timeout_s)
            self._load()
        except TimeoutError:
            raise StoreHeld(f"another process holds {self.directory}", "wait for it to end") from None
        except OSError as error:
            self.close()
            raise ModelStoreError(f"{error.filename or self.directory}: {error.strerror}") from None
        for name in list(self._records) if daemon else ():
            self._start_trial(name)
        self._keep_spare()

    def stop_trials(self) -> None:
        """A daemon stops in order: that is not held against models on trial."""
        for name in list(self._records):
            try:
                self._change(name, record.stop_trial)
            except ModelStoreError as error:
                log.warning("a trial counts one start too many", extra={"model": name, "reason": str(error)})

    def close(self) -> None:
        """Let others at it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # Reading

    @property
    def records(self) -> tuple[Record, ...]:
        """All that is known, by name."""
        return tuple(self._records[name] for name in sorted(self._records))

    def current(self, name: str) -> Slot | None:
        """The slot that is to run now: the one on trial, else the active one."""
        known = self._records.get(name)
        if known is None:
            return None
        current = known.current
        if current is not None and (name, current.digest) in self._shunned:
            return known.of(State.ACTIVE)
        return current

    def path(self, name: str, digest: str) -> Path:
        """Where a slot's bundle lies."""
        return self.directory / name / digest

    def is_proved(self, name: str, proof: Proof) -> bool:
        """Whether this self-test was passed before."""
        return name in self._records and proof in self._records[name].proofs

    def verify(self, name: str, digest: str) -> None:
        """Hash a slot's files. Raises BundleError when they are not what was installed."""
        bundle = open_bundle(self.path(name, digest))
        if bundle.digest != digest:
            raise BundleError(f"{bundle.path} holds another bundle", "its manifest was changed")

    # Moves

    def install(self, tar: Path) -> tuple[str, Slot]:
        """Take a packed bundle, verify it from scratch and stage it. Returns its name and slot; the file is consumed.

        Raises EdgedError; then nothing has appeared, and where there was no room, the file is still there.
        """
        with self._writing, _arrival(self.directory) as folder:
            bundle = unpack(_taken(tar, folder), folder / "bundle")
            slot = self._slot(bundle)
            if self._repair(bundle):
                return bundle.name, slot
            if bundle.name not in self.problems:
                record.install(self._record(bundle.name), slot)  # refuses before anything is moved
            try:
                self._place(bundle)
                self._change(bundle.name, lambda known: record.install(known, slot))
            except OSError as error:
                raise ModelStoreError(f"{bundle.name} cannot be installed: {error.strerror}") from None
            finally:
                self._tidy(bundle.name)
        return bundle.name, slot

    def begin_trial(self, name: str, digest: str = "", *, running: bool) -> Slot:
        """Put a bundle on trial; ``running``: a daemon is here to start it now. Raises ModelRefused."""
        changed = self._change(name, lambda known: record.begin_trial(known, digest, starts=int(running)))
        self._shunned = {one for one in self._shunned if one[0] != name}
        slot = changed.of(State.TRIAL)
        assert slot is not None
        return slot

    def commit(self, name: str, digest: str = "") -> Slot:
        """Make the bundle on trial the active one. Raises ModelRefused, also when it is not ``digest``."""

        def decide(known: Record) -> Record:
            trial = known.of(State.TRIAL)
            if digest and (trial is None or trial.digest != digest):
                raise ModelRefused(f"{name} {digest[:12]} is not on trial any more")
            return record.commit(known)

        slot = self._change(name, decide).of(State.ACTIVE)
        assert slot is not None
        return slot

    def roll_back(self, name: str, reason: str, digest: str = "") -> Slot | None:
        """End the trial, or return to the previous version, which must be whole. Returns what runs now, if anything.

        With ``digest`` only if that is what runs; else nothing happens. Raises ModelRefused, ModelStoreError.
        """

        def decide(known: Record) -> Record:
            if digest and (known.current is None or known.current.digest != digest):
                return known
            after = record.roll_back(known, reason)
            if after.current is not None and known.of(State.TRIAL) is None:
                self.verify(name, after.current.digest)
            return after

        return self._off_trial(name, digest, decide)

    def fail(self, name: str, digest: str, reason: str) -> Slot | None:
        """The bundle on trial failed by itself: never again on this device. Returns what runs now, if anything."""
        return self._off_trial(name, digest, lambda known: record.fail(known, digest, reason))

    def lose(self, name: str, digest: str) -> Slot | None:
        """A bundle's files are damaged: it goes, if there is another to run. Returns what runs now."""
        return self._off_trial(name, digest, lambda known: record.lose(known, digest))

    def discard(self, name: str, digest: str) -> None:
        """Remove one bundle that does not run, or forget that it failed. Raises ModelRefused."""
        self._change(name, lambda known: record.discard(known, digest))

    def remove_all(self, name: str) -> None:
        """Remove a model; its release floor and what failed stay known. Raises ModelRefused when there is none."""
        if not self._record(name).digests() and name not in self.problems:
            raise ModelRefused(f"no model {name} is installed", "edged model list shows them")
        self._change(name, record.remove_all)

    def prove(self, name: str, proof: Proof) -> None:
        """Remember a passed self-test."""
        self._change(name, lambda known: record.proved(known, proof))

    # Within

    def _record(self, name: str) -> Record:
        return self._records.get(name) or Record(name=name)

    def _change(self, name: str, decide: Callable[[Record], Record]) -> Record:
        """Decide, persist, then act: the one way in which anything changes."""
        with self._writing:
            before = self._record(name)
            after = decide(before)
            if after != before or name in self.problems:
                self._persist(after)
                self._records[name] = after
                self.problems.pop(name, None)
                self._tidy(name)
                self._keep_spare()
        self.on_change()
        return after

    def _off_trial(self, name: str, digest: str, decide: Callable[[Record], Record]) -> Slot | None:
        """A change that leads back to what is safe: where the disk refuses it, it holds until the next start."""
        try:
            self._change(name, decide)
        except ModelStoreError:
            trial = self._record(name).of(State.TRIAL)
            if trial is None or (digest and trial.digest != digest):
                raise
            log.warning("the end of a trial cannot be written down; it holds until the next start")
            self._shunned.add((name, trial.digest))
            self.on_change()
        return self.current(name)

    def _persist(self, after: Record) -> None:
        try:
            files.write_record(self.directory, after)
        except OSError as error:
            hint = "free some space" if error.errno == errno.ENOSPC else "check the disk"
            raise ModelStoreError(f"the record of {after.name} cannot be written: {error.strerror}", hint) from None
        with contextlib.suppress(OSError):  # a second copy is welcome, not needed
            files.write_copy(self.directory, after)

    def _slot(self, bundle: Bundle) -> Slot:
        signer = self.trust.signer(bundle)
        return Slot(
            digest=bundle.digest,
            version=bundle.version,
            release_counter=bundle.manifest.release_counter,
            state=State.ABSENT,
            signer=signer.key if signer else "",
            downgrade_from=signer.downgrade_from if signer else None,
        )

    def _repair(self, bundle: Bundle) -> bool:
        """Whether the bundle's slot was damaged and is whole again."""
        slot = self._record(bundle.name).slot(bundle.digest)
        if slot is None or slot.state not in WITH_FILES:
            return False
        try:
            self.verify(bundle.name, bundle.digest)
        except BundleError:
            self._place(bundle)
            self._tidy(bundle.name)
            self.on_change()
            return True
        return False

    def _place(self, bundle: Bundle) -> None:
        """Move an unpacked bundle to where its slot is to be, durably."""
        folder = self.directory / bundle.name
        if not folder.is_dir():
            folder.mkdir(mode=0o750)
            sync_directory(self.directory)
        target = self.path(bundle.name, bundle.digest)
        if os.path.lexists(target):
            target.rename(Path(tempfile.mkdtemp(prefix=GRAVE, dir=folder)) / "damaged")
        bundle.path.rename(target)
        sync_directory(folder)

    def _tidy(self, name: str) -> None:
        """Delete what the record does not name. What cannot be deleted now is deleted at the next start."""
        folder = self.directory / name
        keep = {files.STATE, files.COPY} | self._record(name).digests()
        if name in self.problems or not folder.is_dir():
            return
        for entry in list(folder.iterdir()):
            if entry.name not in keep:
                self._delete(entry)
        if not self._records.get(name):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _delete(self, entry: Path) -> None:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()

    def _load(self) -> None:
        self._records, self.problems, self._shunned = {}, {}, set()
        for entry in list(self.directory.iterdir()):
            if entry.name.startswith(ARRIVING):
                self._delete(entry)
        for name in files.names(self.directory):
            try:
                found = files.read_record(self.directory / name)
            except files.DamagedRecord as error:
                log.error("a model's record is damaged", extra={"model": name, "reason": str(error)})
                self.problems[name] = f"its record is damaged: {error}"
                continue
            if found is not None:
                self._records[name] = found
            self._tidy(name)

    def _start_trial(self, name: str) -> None:
        trial = self._record(name).of(State.TRIAL)
        try:
            self._change(name, record.start_trial)
        except ModelStoreError as error:
            assert trial is not None
            log.warning("a trial is put off", extra={"model": name, "reason": str(error)})
            self._shunned.add((name, trial.digest))

    def _keep_spare(self) -> None:
        with contextlib.suppress(OSError):  # there is none on a full disk; the next change tries again
            files.keep_spare(self.directory)


def read_store(directory: Path) -> tuple[tuple[Record, ...], dict[str, str]]:
    """What a store holds, beside a running daemon: records are replaced whole. And the models that cannot be read."""
    records, problems = [], {}
    for name in files.names(directory):
        try:
            found = files.read_record(directory / name)
        except files.DamagedRecord as error:
            problems[name] = str(error)
        else:
            records += [found] if found is not None else []
    return tuple(records), problems


def current_path(directory: Path, name: str) -> Path:
    """Where the bundle lies that a daemon would run, beside a running one. Raises BundleError when there is none."""
    records, problems = read_store(directory)
    if name in problems:
        raise BundleError(f"the record of {name} is damaged: {problems[name]}", "install the model again")
    current = next((record.current for record in records if record.name == name), None)
    if current is None:
        raise BundleError(f"no model {name} is active", f"edged model install, then edged model trial {name}")
    return directory / name / current.digest


@contextlib.contextmanager
def _arrival(directory: Path) -> Iterator[Path]:
    """A place to unpack into; gone at the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=ARRIVING, dir=directory))
    except OSError as error:
        raise ModelStoreError(f"{directory} cannot be written: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _taken(tar: Path, folder: Path) -> Path:
    """Move a file out of the reach of whoever brought it. Raises ModelStoreError when there is no room to unpack it."""
    own = folder / "bundle.tar"
    try:
        status = tar.lstat()
        needed, free = status.st_size + MARGIN_BYTES, shutil.disk_usage(folder).free
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{tar} is not a plain file", "edged bundle pack writes one")
        if needed > free:
            hint = f"{needed >> 10} KiB are needed, {free >> 10} KiB are free"
            raise ModelStoreError(f"there is no room to unpack {tar.name}", hint)
        tar.rename(own)
        if not stat.S_ISREG(own.lstat().st_mode):  # it was exchanged in between
            raise BundleError(f"{tar} is not a plain file", "edged bundle pack writes one")
    except OSError as error:
        raise ModelStoreError(f"{tar} cannot be taken: {error.strerror}") from None
    return own
