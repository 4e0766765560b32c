"""Signed bundles and stores for tests of installed models: tiny bundles that are whole but hold no real network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edged.bundle import signing
from edged.bundle.archive import pack
from edged.bundle.loaded import SIGNATURE, Bundle, open_bundle
from edged.bundle.store.record import Record
from edged.bundle.store.store import ModelStore
from edged.bundle.store.trust import Trust
from edged.bundle.writer import write_contents
from tests.support.bundles import dense, draft_of

NAME = "digits"


@dataclass(frozen=True)
class Key:
    """A key pair and its files."""

    private: Ed25519PrivateKey
    private_file: Path
    public_file: Path


def make_key(folder: Path, name: str = "release") -> Key:
    """A new Ed25519 key in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    public.chmod(0o644)
    return Key(key, private, public)


def write_bundle(path: Path, counter: int = 1, *, name: str = NAME, size: int = 2000) -> Bundle:
    """A bundle directory that the store takes: version 1.0.COUNTER, of about ``size`` bytes."""
    draft = draft_of(dense(np.random.default_rng(0)), "dense", 4)
    draft = msgspec.structs.replace(draft, name=name, version=f"1.0.{counter}", release_counter=counter)
    filling = np.random.default_rng(counter).bytes(size)
    return write_contents(path, draft, {"model.onnx": filling, "golden.npz": b"golden", "README.md": b"# Card\n"})


def sign_bundle(bundle: Bundle, key: Key, downgrade_from: int | None = None) -> Bundle:
    """The same bundle with a signature beside its files."""
    (bundle.path / SIGNATURE).write_bytes(signing.sign(bundle, key.private, downgrade_from))
    return open_bundle(bundle.path)


def packed(
    folder: Path,
    key: Key | None,
    counter: int = 1,
    *,
    name: str = NAME,
    downgrade_from: int | None = None,
    size: int = 2000,
) -> Path:
    """A packed bundle as it arrives in ``incoming``: ``folder/NAME-COUNTER.tar``."""
    folder.mkdir(parents=True, exist_ok=True)
    directory = folder / f"{name}-{counter}-{downgrade_from}"
    if not directory.exists():
        bundle = write_bundle(directory, counter, name=name, size=size)
        if key is not None:
            sign_bundle(bundle, key, downgrade_from)
    tar = folder / f"{name}-{counter}.tar"
    pack(directory, tar)
    return tar


def make_store(state: Path, *keys: Key, allow_unsigned: bool = False) -> ModelStore:
    """A store that trusts these keys; not open."""
    trusted = tuple(key.public_file for key in keys)
    return ModelStore(state / "models", Trust(state / "trust", trusted, allow_unsigned))


def record_of(store: ModelStore, name: str = NAME) -> Record:
    """What a store knows of a model."""
    return next((record for record in store.records if record.name == name), Record(name=name))
