"""The tar is a function of the contents, and nothing but that tar is ever unpacked."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.bundle.archive import BLOCK, header, opened, pack, unpack
from edged.bundle.loaded import Bundle
from edged.errors import BundleError
from tests.support.bundles import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "dense")


@pytest.fixture(scope="module")
def tar(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("t") / "dense.tar"
    pack(bundle.path, out)
    return out.read_bytes()


def test_packing_and_unpacking_gives_the_same_bundle(bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle.path, tmp_path / "a.tar")
    found = unpack(tmp_path / "a.tar", tmp_path / "slots" / "a")
    assert found.digest == bundle.digest
    assert found.manifest == bundle.manifest
    assert {p.name: p.read_bytes() for p in found.path.iterdir()} == {
        p.name: p.read_bytes() for p in bundle.path.iterdir()
    }


def test_the_bytes_depend_on_the_contents_only(bundle: Bundle, tar: bytes, tmp_path: Path) -> None:
    for path in bundle.path.iterdir():
        os.utime(path, (1, 1))
    bundle.path.joinpath("model.onnx").chmod(0o600)
    pack(bundle.path, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == tar


def test_any_tar_program_reads_it(bundle: Bundle, tar: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == ["manifest.json", *sorted(bundle.manifest.files)]
        assert {(m.mode, m.uid, m.gid, m.mtime, m.type) for m in members} == {(0o644, 0, 0, 0, tarfile.REGTYPE)}
        extracted = archive.extractfile("model.onnx")
        assert extracted is not None
        assert extracted.read() == bundle.read("model.onnx")


def test_packing_replaces_in_one_step_and_refuses_a_broken_bundle(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out.tar").write_bytes(b"old")
    with pytest.raises(BundleError):
        pack(tmp_path, tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == b"old"
    pack(bundle.path, tmp_path / "out.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["out.tar"]
    with pytest.raises(BundleError, match="cannot be written"):
        pack(bundle.path, tmp_path / "nowhere" / "out.tar")


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One member as Python's own tar writer would write it, with our metadata."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type, info.linkname = len(data), 0o644, kind, link
    block: bytes = info.tobuf(tarfile.USTAR_FORMAT)
    return block + data + bytes(-len(data) % BLOCK)


def first_size(tar: bytes) -> int:
    """Bytes of the manifest's member, its header and padding included."""
    size = int(tar[124:135], 8)
    return BLOCK + size + -size % BLOCK


def second(replace: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Replace what follows the manifest by a member and the rest."""
    return lambda tar: tar[: first_size(tar)] + replace(tar[first_size(tar) :])


def declares(size: int) -> Callable[[bytes], bytes]:
    return second(lambda rest: header("README.md", size) + rest[BLOCK:])


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda tar: b"", "ends within its first header"),
    "text": (lambda tar: b"this is not an archive" * 100, "is not a plain file name|damaged"),
    "a truncated archive": (lambda tar: tar[: len(tar) // 2], "truncated"),
    "an archive without its end": (lambda tar: tar[:-1024], "ends within the end"),
    "half an end": (lambda tar: tar[:-512], "ends within the end"),
    "a truncated manifest": (lambda tar: tar[:700], "ends within manifest.json"),
    "an early end": (second(lambda rest: bytes(1024)), "ends before its last file"),
    "something behind the end": (lambda tar: tar + b"x", "goes on after its last file"),
    "another archive behind the end": (lambda tar: tar + tar, "goes on after its last file"),
    "a changed byte": (lambda tar: tar[:-1100] + bytes([tar[-1100] ^ 1]) + tar[-1099:], "damaged|hides bytes"),
    "hidden bytes": (lambda tar: tar[: first_size(tar) - 1] + b"x" + tar[first_size(tar) :], "hides bytes"),
    "traversal": (second(lambda rest: member("../../evil", b"x") + rest), "'../../evil' is not a plain file name"),
    "an absolute name": (second(lambda rest: member("/tmp/evil", b"x") + rest), "'/tmp/evil' is not a plain file name"),
    "a symbolic link": (second(lambda rest: member("README.md", b"", tarfile.SYMTYPE, "/etc/passwd") + rest),
                        "'README.md' is a symbolic link"),
    "a hard link": (second(lambda rest: member("README.md", b"", tarfile.LNKTYPE, "model.onnx") + rest), "a hard link"),
    "a device": (second(lambda rest: member("README.md", b"", tarfile.CHRTYPE) + rest), "a device"),
    "a pipe": (second(lambda rest: member("README.md", b"", tarfile.FIFOTYPE) + rest), "a pipe"),
    "a folder": (second(lambda rest: member("sub", b"", tarfile.DIRTYPE) + rest), "a folder"),
    "a PAX header": (second(lambda rest: member("README.md", b"11 path=a\n", tarfile.XHDTYPE) + rest), "PAX extension"),
    "a GNU long name": (second(lambda rest: member("README.md", b"a", tarfile.GNUTYPE_LONGNAME) + rest), "GNU ext"),
    "the manifest twice": (lambda tar: tar[: first_size(tar)] + tar, "'manifest.json' where 'README.md' belongs"),
    "a file twice": (second(lambda rest: rest[:1024] + rest), "'README.md' where 'golden.npz' belongs"),
    "a file that the manifest does not name": (second(lambda rest: header("extra.bin", 0) + rest),
                                               "'extra.bin' where 'README.md' belongs"),
    "a missing file": (second(lambda rest: rest[1024:]), "'golden.npz' where 'README.md' belongs"),
    "a huge declared size": (declares(0o77777777777), "declares 8589934591 bytes for README.md"),
    "a size that is not the manifest's": (declares(22), r"declares 22 bytes for README.md .the manifest says 23."),
    "a huge manifest": (lambda tar: header("manifest.json", 1 << 30) + tar[BLOCK:], "declares a manifest.json of"),
    "a size in base 256": (second(lambda rest: rest[:124] + b"\x80" + bytes(10) + b"\x10" + rest[136:]), "damaged"),
    "odd metadata": (second(lambda rest: rest[:100] + b"0004755" + rest[107:]), "damaged"),
    "another first member": ((lambda tar: tar[first_size(tar) :]), "begins with 'README.md'"),
    "a compressed archive": (lambda tar: b"\x1f\x8b\x08" + tar[3:], "damaged|plain file name"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_archive_out_of_form_is_refused_and_nothing_appears(tar: bytes, tmp_path: Path, name: str) -> None:
    change, message = BAD[name]
    (tmp_path / "bad.tar").write_bytes(change(tar))
    with pytest.raises(BundleError, match=message):
        unpack(tmp_path / "bad.tar", tmp_path / "slots" / "new")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["bad.tar", "slots"]


def test_unpacking_never_replaces_anything(tar: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(tar)
    (tmp_path / "taken").mkdir()
    with pytest.raises(BundleError, match="exists"):
        unpack(tmp_path / "good.tar", tmp_path / "taken")
    assert list((tmp_path / "taken").iterdir()) == []
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="exists"):
        unpack(tmp_path / "good.tar", tmp_path / "dangling")


def test_opened_takes_a_directory_or_a_tar(bundle: Bundle, tar: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(tar)
    with opened(bundle.path) as from_directory, opened(tmp_path / "good.tar") as from_tar:
        assert from_directory.digest == from_tar.digest
        place = from_tar.path
        assert place.is_dir()
    assert not place.exists()
    with pytest.raises(BundleError, match="is not a file"), opened(tmp_path / "nowhere"):
        pass
