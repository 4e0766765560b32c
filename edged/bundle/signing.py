"""Signs bundles and verifies their signatures: Ed25519 in the format of OpenSSF model-signing 1.0.

The signature is one file, ``model.sig``: a Sigstore bundle (v0.3) with a DSSE envelope around an in-toto statement,
which names every file of the bundle with its sha256, the manifest included. One field is our own, where the format
leaves room for it (``predicate.edged``): the release counter up to which the bundle may be installed as a downgrade.

Order of a verification: parse the envelope → find the trusted key that it names → check the signature → only then read
the statement → compare it with the files. ``cryptography`` is imported where it is used and never by the daemon, which
runs ``python -m edged.bundle.signing`` instead (``check_signature``): its 10 MB last for milliseconds then.

Sources: https://github.com/sigstore/model-transparency, https://github.com/secure-systems-lab/dsse (protocol 1.0.2),
https://docs.sigstore.dev/about/bundle, RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from edged.bundle.loaded import SIGNATURE, Bundle, open_bundle
from edged.bundle.manifest import MANIFEST
from edged.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
KEY_BYTES_MAX = 4096  # an Ed25519 key in PEM takes 120 bytes
CHECK_TIMEOUT_S = 120.0  # the largest bundle allowed hashes in ten seconds on a slow card
_REFUSED = 3  # exit code of the subprocess: its reason is on stdout


class SignatureError(BundleError):
    """A bundle has no signature, or one that does not hold here. Nothing was changed."""

    code = "signature"


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed a bundle: the trusted key's file name, and what it allows beyond the usual."""

    key: str
    downgrade_from: int | None = None  # may replace models up to this release counter, though its own is lower


class _Signature(msgspec.Struct, frozen=True):
    sig: str
    keyid: str = ""


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(min_length=1, max_length=1)]


class _PublicKey(msgspec.Struct, frozen=True):
    hint: str


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _PublicKey
    tlog_entries: tuple[Any, ...] = ()


class _SigstoreBundle(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(msgspec.Struct, frozen=True):
    name: str
    algorithm: str
    digest: str


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: dict[str, str]


class _Extra(msgspec.Struct, frozen=True, omit_defaults=True):
    downgrade_from: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Predicate(msgspec.Struct, frozen=True):
    serialization: dict[str, Any]
    resources: tuple[_Resource, ...]
    edged: _Extra = _Extra()


class _Statement(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="_type")
    subject: Annotated[tuple[_Subject, ...], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: _Predicate


def sign(bundle: Bundle, key: Ed25519PrivateKey, downgrade_from: int | None = None) -> bytes:
    """The contents of ``model.sig`` for a bundle. The same bundle and key always give the same bytes."""
    resources = _resources(bundle)
    statement = _Statement(
        kind=STATEMENT_TYPE,
        subject=(_Subject(bundle.name, {"sha256": _root(resources)}),),
        predicate_type=PREDICATE_TYPE,
        predicate=_Predicate(_SERIALIZATION, resources, _Extra(downgrade_from)),
    )
    payload = msgspec.json.encode(statement)
    envelope = _Envelope(_base64(payload), PAYLOAD_TYPE, (_Signature(_base64(key.sign(_to_sign(payload)))),))
    material = _Material(_PublicKey(key_hint(key.public_key())))
    return msgspec.json.encode(_SigstoreBundle(MEDIA_TYPE, material, envelope)) + b"\n"


def verify(bundle: Bundle, keys: Iterable[Path]) -> Signer:
    """Which of these public keys the bundle was signed with. Raises SignatureError; ConfigError for a bad key file."""
    data = bundle.signature()
    if data is None:
        raise SignatureError(f"{bundle.name}@{bundle.version} is not signed", "edged bundle sign --key KEY DIRECTORY")
    signature = _decode(data, _SigstoreBundle, "is no Sigstore bundle with a DSSE envelope")
    envelope = signature.dsse_envelope
    if signature.media_type != MEDIA_TYPE or envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureError(f"{SIGNATURE} is of an unknown type: {signature.media_type}", f"expected {MEDIA_TYPE}")
    path, key = _key_of(signature.verification_material.public_key.hint, keys)
    payload = _unbase64(envelope.payload)
    _check(key, _unbase64(envelope.signatures[0].sig), payload)
    statement = _decode(payload, _Statement, "holds no statement of a model's files")
    _compare(bundle, statement)
    return Signer(key=path.name, downgrade_from=statement.predicate.edged.downgrade_from)


def check_signature(bundle: Path, keys: Sequence[Path]) -> Signer:
    """``verify`` in a process of its own. Raises SignatureError, BundleError, ConfigError."""
    command = [sys.executable, "-m", "edged.bundle.signing", str(bundle), *map(str, keys)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(f"the signature of {bundle} cannot be checked: {error}") from None
    if done.returncode == _REFUSED:
        code, message, hint = msgspec.json.decode(done.stdout, type=tuple[str, str, str])
        raise _ERRORS.get(code, BundleError)(message, hint)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
        raise BundleError(f"the signature of {bundle} cannot be checked: {lines[-1]}")
    return msgspec.json.decode(done.stdout, type=Signer)


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key from PEM without a password. Raises ConfigError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    hint = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"
    try:
        key = load_pem_private_key(_key_bytes(path), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a private key that can be used: {error}", hint) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a private key of another kind than Ed25519", hint)
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """An Ed25519 public key from PEM. Raises ConfigError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    hint = "a public key is made with: openssl pkey -in key.pem -pubout -out key.pub.pem"
    try:
        key = load_pem_public_key(_key_bytes(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not a public key: {error}", hint) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is a public key of another kind than Ed25519", hint)
    return key


def key_hint(key: Ed25519PublicKey) -> str:
    """How a signature names its key: sha256 of the public key in PEM, hex."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


_ERRORS: dict[str, type[BundleError | ConfigError]] = {error.code: error for error in (SignatureError, ConfigError)}
_SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}


def _resources(bundle: Bundle) -> tuple[_Resource, ...]:
    """Every file of a bundle, the manifest included, in order of name."""
    digests = {name: entry.sha256 for name, entry in bundle.manifest.files.items()} | {MANIFEST: bundle.digest}
    return tuple(_Resource(name, "sha256", digest) for name, digest in sorted(digests.items()))


def _root(resources: Iterable[_Resource]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(one.digest) for one in resources)).hexdigest()


def _to_sign(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, which binds the type of the payload."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _key_of(hint: str, keys: Iterable[Path]) -> tuple[Path, Ed25519PublicKey]:
    names = []
    for path in keys:
        key = load_public_key(path)
        if key_hint(key) == hint:
            return path, key
        names.append(path.name)
    trusted = f"trusted: {', '.join(sorted(names))}" if names else "no key is trusted: copy one into <state_dir>/trust/"
    raise SignatureError(f"{SIGNATURE} was made with a key that is not trusted here", trusted)


def _check(key: Ed25519PublicKey, signature: bytes, payload: bytes) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, _to_sign(payload))
    except InvalidSignature:
        raise SignatureError(
            f"{SIGNATURE} was changed: it does not fit its key", "sign or copy the bundle again"
        ) from None


def _compare(bundle: Bundle, statement: _Statement) -> None:
    """The statement must be about exactly this bundle."""
    if (statement.kind, statement.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise SignatureError(f"{SIGNATURE} holds a statement of type {statement.predicate_type}", PREDICATE_TYPE)
    subject, resources = statement.subject[0], statement.predicate.resources
    if subject.name != bundle.name or subject.digest != {"sha256": _root(_resources(bundle))}:
        raise SignatureError(f"{SIGNATURE} belongs to another bundle than {bundle.name}@{bundle.version}")
    if resources != _resources(bundle):
        raise SignatureError(f"{SIGNATURE} names other files than {bundle.name}@{bundle.version} has")


def _decode(data: bytes, kind: Any, problem: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(f"{SIGNATURE} {problem}: {error}") from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"{SIGNATURE} is damaged: {error}") from None


def _key_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(KEY_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "name a key in PEM") from None


def main(arguments: Sequence[str]) -> int:
    """Entry of the subprocess: BUNDLE KEY… Prints the signer, or the reason why the signature is refused, as JSON."""
    try:
        signer = verify(open_bundle(Path(arguments[0])), [Path(name) for name in arguments[1:]])
    except (BundleError, ConfigError) as error:
        sys.stdout.write(msgspec.json.encode((error.code, error.message, error.hint)).decode())
        return _REFUSED
    sys.stdout.write(msgspec.json.encode(signer).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
