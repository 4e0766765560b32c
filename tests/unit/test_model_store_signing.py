"""A signature holds for exactly the bundle, the key and the bytes that it was made with, and for nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from edged.bundle import signing
from edged.bundle.archive import BLOCK, header, pack, unpack
from edged.bundle.loaded import MAX_SIGNATURE_BYTES, SIGNATURE, Bundle, open_bundle
from edged.bundle.signing import SignatureError, Signer, check_signature, sign, verify
from edged.bundle.store.trust import Trust
from edged.cli import main
from edged.errors import BundleError, ConfigError
from tests.support.parts import require
from tests.support.store import Key, make_key, sign_bundle, write_bundle

Json = dict[str, Any]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def bundle(tmp_path: Path, key: Key) -> Bundle:
    return sign_bundle(write_bundle(tmp_path / "bundle"), key)


def pae(envelope: Json) -> bytes:
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def statement_of(signature: Json) -> Json:
    statement: Json = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
    return statement


def test_a_signed_bundle_names_its_signer(bundle: Bundle, key: Key) -> None:
    assert verify(bundle, [key.public_file]) == Signer(key="release.pem")
    assert check_signature(bundle.path, [key.public_file]) == Signer(key="release.pem")


def test_the_same_bundle_and_key_give_the_same_bytes_and_the_digest_stays(bundle: Bundle, key: Key) -> None:
    assert sign(bundle, key.private) == (bundle.path / SIGNATURE).read_bytes()
    (bundle.path / SIGNATURE).unlink()
    assert open_bundle(bundle.path).digest == bundle.digest


def test_the_format_is_that_of_model_signing(bundle: Bundle, key: Key) -> None:
    """Every field as OpenSSF model-signing 1.0 writes it; only ``predicate.edged`` is ours."""
    signature = json.loads((bundle.path / SIGNATURE).read_bytes())
    pem = key.public_file.read_bytes()
    files = {path.name: hashlib.sha256(path.read_bytes()) for path in bundle.path.iterdir() if path.name != SIGNATURE}
    resources = [{"name": name, "algorithm": "sha256", "digest": files[name].hexdigest()} for name in sorted(files)]
    root = hashlib.sha256(b"".join(files[name].digest() for name in sorted(files))).hexdigest()
    assert signature["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert signature["verificationMaterial"] == {
        "publicKey": {"hint": hashlib.sha256(pem).hexdigest()},
        "tlogEntries": [],
    }
    assert signature["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"
    assert statement_of(signature) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "digits", "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": ["model.sig"],
            },
            "resources": resources,
            "edged": {},
        },
    }


def test_openssl_verifies_the_same_bytes(bundle: Bundle, key: Key, tmp_path: Path) -> None:
    require("openssl")
    envelope = json.loads((bundle.path / SIGNATURE).read_bytes())["dsseEnvelope"]
    (tmp_path / "signed").write_bytes(pae(envelope))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(key.public_file), "-rawin"]
    command += ["-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "sig")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "signed").write_bytes(pae(envelope) + b" ")
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_it_travels_in_the_archive(bundle: Bundle, key: Key, tmp_path: Path) -> None:
    pack(bundle.path, tmp_path / "signed.tar")
    found = unpack(tmp_path / "signed.tar", tmp_path / "unpacked")
    assert found.digest == bundle.digest
    assert verify(found, [key.public_file]) == Signer(key="release.pem")


@pytest.mark.parametrize(
    ("size", "complaint"), [(MAX_SIGNATURE_BYTES + 1, "declares a model.sig of"), (100, "ends within model.sig")]
)
def test_an_archive_with_a_bad_signature_file_is_refused(
    bundle: Bundle, tmp_path: Path, size: int, complaint: str
) -> None:
    (bundle.path / SIGNATURE).unlink()
    pack(bundle.path, tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()[: -2 * BLOCK] + header(SIGNATURE, size)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(BundleError, match=complaint):
        unpack(tmp_path / "a.tar", tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_a_manifest_that_names_the_signature_is_refused(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path / "bundle").path
    manifest = json.loads((directory / "manifest.json").read_bytes())
    manifest["files"][SIGNATURE] = manifest["files"]["golden.npz"]
    (directory / SIGNATURE).write_bytes((directory / "golden.npz").read_bytes())
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"names model\.sig"):
        open_bundle(directory)


def _no_signature(path: Path) -> None:
    path.unlink()


def _edit(change: Callable[[Json], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        signature = json.loads(path.read_bytes())
        change(signature)
        path.write_text(json.dumps(signature))

    return edit


def _restate(change: Callable[[Json], object]) -> Callable[[Path], None]:
    """Change the statement and keep its old signature."""

    def restate(signature: Json) -> None:
        statement = statement_of(signature)
        change(statement)
        signature["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return _edit(restate)


def _flip(signature: Json) -> None:
    raw = bytearray(base64.b64decode(signature["dsseEnvelope"]["signatures"][0]["sig"]))
    raw[7] ^= 1
    signature["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("README.md")


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (_no_signature, "is not signed"),
    "no JSON": (lambda path: path.write_bytes(b"{"), "no Sigstore bundle"),
    "not UTF-8": (lambda path: path.write_bytes(b'{"mediaType":"\xff"}'), "no Sigstore bundle"),
    "deep JSON": (lambda path: path.write_bytes(b"[" * 60000), "no Sigstore bundle"),
    "huge": (lambda path: path.write_bytes(b" " * (MAX_SIGNATURE_BYTES + 1)), "bytes"),
    "a link": (_link, "cannot be opened"),
    "a changed signature": (_edit(_flip), "does not fit its key"),
    "a changed statement": (_restate(lambda s: s["predicate"]["edged"].update(downgrade_from=9)), "does not fit"),
    "another type of bundle": (_edit(lambda s: s.update(mediaType="x")), "unknown type"),
    "another type of payload": (_edit(lambda s: s["dsseEnvelope"].update(payloadType="text/plain")), "unknown type"),
    "two signatures": (
        _edit(lambda s: s["dsseEnvelope"].update(signatures=2 * s["dsseEnvelope"]["signatures"])),
        "no Sigstore bundle",
    ),
    "no base64": (_edit(lambda s: s["dsseEnvelope"].update(payload="?")), "damaged"),
    "another key's name": (
        _edit(lambda s: s["verificationMaterial"]["publicKey"].update(hint="0" * 64)),
        "not trusted here",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_tampered_with_is_refused(bundle: Bundle, key: Key, case: str) -> None:
    tamper, complaint = TAMPERED[case]
    tamper(bundle.path / SIGNATURE)
    with pytest.raises(BundleError, match=complaint):
        verify(bundle, [key.public_file])
    with pytest.raises(BundleError, match=complaint):
        check_signature(bundle.path, [key.public_file])


@pytest.mark.parametrize("file", ["README.md", "model.onnx", "manifest.json"])
def test_a_changed_file_is_refused_though_its_manifest_was_changed_with_it(bundle: Bundle, key: Key, file: str) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    if file == "manifest.json":
        manifest["release_counter"] = 1000
    else:
        (bundle.path / file).write_bytes(b"evil")
        manifest["files"][file] = {"sha256": hashlib.sha256(b"evil").hexdigest(), "size": 4}
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SignatureError, match="belongs to another bundle"):
        verify(open_bundle(bundle.path), [key.public_file])


SIGNED_BUT_WRONG: dict[str, tuple[Callable[[Json], object], str]] = {
    "another name": (lambda s: s["subject"][0].update(name="faces"), "belongs to another bundle"),
    "a file less": (lambda s: s["predicate"]["resources"].pop(), "names other files"),
    "another digest": (lambda s: s["predicate"]["resources"][0].update(digest="0" * 64), "names other files"),
    "another predicate": (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "statement of type"),
    "another statement": (lambda s: s.update(_type="x"), "statement of type"),
    "no subject": (lambda s: s.update(subject=[]), "no statement"),
    "a downgrade that is no number": (lambda s: s["predicate"].update(edged={"downgrade_from": "9"}), "no statement"),
}


@pytest.mark.parametrize("case", SIGNED_BUT_WRONG)
def test_a_trusted_key_cannot_vouch_for_another_statement(bundle: Bundle, key: Key, case: str) -> None:
    """The signature holds; what it says does not."""
    change, complaint = SIGNED_BUT_WRONG[case]

    def resign(signature: Json) -> None:
        envelope = signature["dsseEnvelope"]
        envelope["signatures"][0]["sig"] = base64.b64encode(key.private.sign(pae(envelope))).decode()

    _restate(change)(bundle.path / SIGNATURE)
    _edit(resign)(bundle.path / SIGNATURE)
    with pytest.raises(SignatureError, match=complaint):
        verify(bundle, [key.public_file])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_only_trusted_keys_count(bundle: Bundle, key: Key, tmp_path: Path, count: int) -> None:
    others = [make_key(tmp_path, f"other-{k}").public_file for k in range(count)]
    with pytest.raises(SignatureError, match="not trusted here"):
        verify(bundle, others)
    assert verify(bundle, [*others, key.public_file]).key == "release.pem"


def test_a_key_that_pretends_to_be_another_does_not_help(bundle: Bundle, key: Key, tmp_path: Path) -> None:
    """The thief signs with a key of its own and names the trusted one."""
    thief = make_key(tmp_path, "thief")
    sign_bundle(bundle, thief)
    hint = signing.key_hint(key.private.public_key())
    _edit(lambda s: s["verificationMaterial"]["publicKey"].update(hint=hint))(bundle.path / SIGNATURE)
    with pytest.raises(SignatureError, match="does not fit its key"):
        verify(bundle, [key.public_file])


@given(position=st.integers(0, 1499), value=st.integers(0, 255))
def test_no_changed_byte_of_the_signed_part_survives(
    tmp_path_factory: pytest.TempPathFactory, key: Key, position: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    bundle = open_bundle(folder) if folder.exists() else sign_bundle(write_bundle(folder), key)
    whole = sign(bundle, key.private)
    data = bytearray(whole)
    data[position % len(whole)] = value
    (folder / SIGNATURE).write_bytes(data)
    try:
        assert verify(bundle, [key.public_file]) == Signer(key="release.pem")
        assert json.loads(whole)["dsseEnvelope"]["payload"].encode() in data
    except SignatureError:
        assert data != whole


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_keys_of_another_kind_are_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, complaint in (
        (_write(tmp_path / "ec.pem", public), "another kind than Ed25519"),
        (_write(tmp_path / "bad.pem", b"no key"), "is not a public key"),
        (tmp_path / "gone.pem", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            verify(bundle, [file])
        with pytest.raises(ConfigError, match=complaint):
            check_signature(bundle.path, [file])
    with pytest.raises(ConfigError, match="another kind than Ed25519"):
        signing.load_private_key(_write(tmp_path / "ec.key", private))
    with pytest.raises(ConfigError, match="not a private key"):
        signing.load_private_key(_write(tmp_path / "pub.key", public))


def test_keys_that_others_may_write_are_no_trust(bundle: Bundle, key: Key, tmp_path: Path) -> None:
    folder = tmp_path / "trust"
    folder.mkdir(mode=0o755)
    copy = _write(folder / "release.pem", key.public_file.read_bytes())
    copy.chmod(0o644)
    trust = Trust(folder)
    assert trust.signer(bundle) == Signer(key="release.pem")
    for place, mode in ((copy, 0o664), (copy, 0o646), (folder, 0o775)):
        before = place.stat().st_mode
        place.chmod(mode)
        with pytest.raises(ConfigError, match="can be written by others"):
            trust.signer(bundle)
        place.chmod(before)
    copy.unlink()  # the key is withdrawn
    with pytest.raises(SignatureError, match="no key is trusted"):
        trust.signer(bundle)


def test_unsigned_is_taken_only_where_that_is_allowed_and_a_bad_signature_never(bundle: Bundle, tmp_path: Path) -> None:
    lax, strict = Trust(tmp_path / "none", allow_unsigned=True), Trust(tmp_path / "none")
    with pytest.raises(SignatureError, match="not trusted"):
        lax.signer(bundle)
    (bundle.path / SIGNATURE).unlink()
    assert lax.signer(bundle) is None
    with pytest.raises(SignatureError, match="is not signed"):
        strict.signer(bundle)


def test_the_command_line_signs_and_verifies(tmp_path: Path, key: Key, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    sign_command = ["bundle", "sign", "--key", str(key.private_file), str(bundle.path)]
    assert main(sign_command) == 0
    assert verify(bundle, [key.public_file]).downgrade_from is None
    assert main([*sign_command, "--allow-downgrade", "7"]) == 0
    assert verify(bundle, [key.public_file]).downgrade_from == 7
    assert "key" in capsys.readouterr().out
    assert main([*sign_command, "--allow-downgrade", "-1"]) == 1
    assert main(["bundle", "sign", "--key", str(key.public_file), str(bundle.path)]) == 78
    assert "openssl genpkey" in capsys.readouterr().err
