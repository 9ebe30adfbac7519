"""The two files that an artifact can be, as bytes: what is written is read back, and nothing else is."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.archive import (
    FORMAT,
    LIBRARY,
    MAGIC,
    MANIFEST,
    format_of,
    holds_manifest,
    manifest_source,
    read,
    seal,
    write_tar,
)

pytestmark = pytest.mark.tvm
ABOUT: dict[str, Any] = {"magic": MAGIC, "format": FORMAT, "versions": {"numpy": "é"}, "text": 'a "quoted" \\ line\n'}


def library(manifest: dict[str, Any]) -> bytes:
    """A library as the linker would make it of `manifest_source`, among other bytes, sealed."""
    numbers = re.findall(r"\d+", manifest_source(manifest).partition("{")[2].partition("= {")[2])
    return seal(b"\x7fELF\x00code" + bytes(map(int, numbers)) + b"\x00more code")


def test_a_library_describes_itself(tmp_path: Path) -> None:
    (tmp_path / "m.so").write_bytes(library(ABOUT))
    assert read(tmp_path / "m.so") == (ABOUT, library(ABOUT))
    assert holds_manifest(library(ABOUT))


def test_an_archive_gives_back_library_and_manifest(tmp_path: Path) -> None:
    write_tar(tmp_path / "m.tar", b"code", ABOUT)
    manifest, code = read(tmp_path / "m.tar")
    assert code == b"code"
    assert ABOUT.items() <= manifest.items()


def test_no_byte_of_a_library_changes_unseen(tmp_path: Path) -> None:
    whole = library(ABOUT)
    for place in range(4, len(whole), 5):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "m.so").write_bytes(changed)
        with pytest.raises(LoweringError, match=r"truncated or damaged|truncated library"):
            read(tmp_path / "m.so")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": "another"}, "something else"),
        ({"format": "2"}, "found format '2'"),
        ({"format": None}, "found format None"),
        ({"format": FORMAT + 1}, f"found format {FORMAT + 1}, written by .*this version reads up to {FORMAT}"),
    ],
)
def test_what_another_program_or_version_wrote_is_refused_in_both_forms(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_tar(tmp_path / "m.tar", b"code", ABOUT | change)
    (tmp_path / "m.so").write_bytes(library(ABOUT | change))
    for name in ("m.tar", "m.so"):
        with pytest.raises(LoweringError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_regular_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        content = json.dumps(ABOUT).encode()
        entry = tarfile.TarInfo(MANIFEST)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo(LIBRARY)
        link.type, link.linkname = kind, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(LoweringError, match=r"model\.so is no regular file"):
        read(tmp_path / "m.tar")


@pytest.mark.parametrize(("name", "form"), [("m.so", "so"), ("m.tar", "tar"), ("m", "tar"), ("m.so.1", "tar")])
def test_a_file_is_an_archive_unless_its_name_says_library(name: str, form: str) -> None:
    assert format_of(Path(name)) == form
