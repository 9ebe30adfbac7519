"""The two files that an artifact can be, as bytes: what is written is read back, and nothing else is."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.archive import (
    FORMAT,
    LIBRARY,
    MAGIC,
    MANIFEST,
    format_of,
    manifest_source,
    read,
    variants_described,
    write_library,
    write_tar,
)
from reparam_compiler.lowering.runtime.stored import ALIGNMENT, Packing, aligned, offsets, read_back, written

pytestmark = pytest.mark.tvm
ABOUT: dict[str, Any] = {"magic": MAGIC, "format": FORMAT, "versions": {"numpy": "é"}, "text": 'a "quoted" \\ line\n'}
ABOUT |= {"arrays": [], "weights": [], "variants": [{}]}


WEIGHTS = [np.arange(15, dtype="float32").reshape(3, 5), np.arange(7, dtype="float64")]
ENTRIES = [
    {"stored": 0, "dtype": "float64", "shape": [5, 3], "packing": "turned", "arguments": {"by": 1}},
    {"stored": 1, "dtype": "float64", "shape": [7], "packing": None, "arguments": {}},
]
HELD = ABOUT | {"weights": ENTRIES, "arrays": [{"dtype": "float32", "shape": [3, 5]}, {"dtype": "float64", "shape": [7]}]}
OTHERS = [b"\x7fELF other", b"\x7fELF third" * 1000]
SEVERAL = HELD | {"variants": [{}, *({"size": len(library)} for library in OTHERS)]}


def linked(manifest: dict[str, Any]) -> bytes:
    """A library as the linker would make it of `manifest_source`, among other bytes."""
    numbers = re.findall(r"\d+", manifest_source(manifest).partition("{")[2].partition("= {")[2])
    return b"\x7fELF\x00code" + bytes(map(int, numbers)) + b"\x00more code"


def test_a_library_describes_itself(tmp_path: Path) -> None:
    write_library(tmp_path / "m.so", [linked(ABOUT)], [])
    found = read(tmp_path / "m.so")
    assert (found.manifest, found.arrays) == (ABOUT, [])
    assert found.libraries == [(tmp_path / "m.so").read_bytes()]
    assert variants_described(found.libraries[0]) == 1


def test_a_library_has_its_packed_weights_behind_it(tmp_path: Path) -> None:
    packed = [WEIGHTS[0].T.astype("float64"), WEIGHTS[1]]
    write_library(tmp_path / "m.so", [linked(HELD)], packed)
    found = read(tmp_path / "m.so")
    assert found.packed
    for array, expected in zip(found.arrays, packed, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.ctypes.data % ALIGNMENT == 0
    write_library(tmp_path / "again.so", found.libraries, found.arrays)
    assert (tmp_path / "again.so").read_bytes() == (tmp_path / "m.so").read_bytes()


@pytest.mark.parametrize("weights", [[WEIGHTS[0].T.astype("float64"), WEIGHTS[1]], []])
def test_a_library_has_those_of_further_variants_behind_it(weights: list[np.ndarray], tmp_path: Path) -> None:
    first = linked(SEVERAL if weights else SEVERAL | {"weights": [], "arrays": []})
    write_library(tmp_path / "m.so", [first, *OTHERS], weights)
    found = read(tmp_path / "m.so")
    assert found.libraries[1:] == OTHERS
    for array, expected in zip(found.arrays, weights, strict=True):
        np.testing.assert_array_equal(array, expected)
    write_library(tmp_path / "again.so", found.libraries, found.arrays)
    assert (tmp_path / "again.so").read_bytes() == (tmp_path / "m.so").read_bytes()


def test_an_archive_gives_back_library_manifest_and_weights_as_they_were(tmp_path: Path) -> None:
    write_tar(tmp_path / "m.tar", [b"code", *OTHERS], SEVERAL, WEIGHTS)
    found = read(tmp_path / "m.tar")
    assert found.libraries == [b"code", *OTHERS]
    assert SEVERAL.items() <= found.manifest.items()
    assert not found.packed
    for array, expected in zip(found.arrays, WEIGHTS, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_an_archive_without_the_library_of_a_variant_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "m.tar", [b"code", OTHERS[0]], SEVERAL, WEIGHTS)
    with pytest.raises(LoweringError, match=r"truncated or foreign file .*model-2\.so"):
        read(tmp_path / "m.tar")
    write_tar(tmp_path / "m.tar", [b"code", *OTHERS], SEVERAL, WEIGHTS)
    (tmp_path / "m.tar").write_bytes((tmp_path / "m.tar").read_bytes().replace(OTHERS[0], b"\x7fELF othex"))
    with pytest.raises(LoweringError, match=r"model-1\.so in it is damaged"):
        read(tmp_path / "m.tar")


def test_an_archive_without_weights_has_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "m.tar", [b"code"], ABOUT)
    assert read(tmp_path / "m.tar").arrays == []


@given(st.lists(st.tuples(st.sampled_from(("float32", "float64", "int8")), st.integers(1, 100)), max_size=5))
def test_arrays_come_back_from_a_file_each_where_kernels_may_read_it(sizes: list[tuple[str, int]]) -> None:
    arrays = [np.arange(count).astype(dtype) for dtype, count in sizes]
    content = written(arrays)
    found = read_back(content, [array.shape for array in arrays], [dtype for dtype, _ in sizes])
    for array, expected in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(array, expected)
    places = offsets([array.nbytes for array in arrays])
    assert places[-1] == len(content)
    assert not any(place % ALIGNMENT for place in places)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5)])
def test_an_aligned_copy_is_a_copy(shape: tuple[int, ...]) -> None:
    array = np.zeros((2, *shape), "float32")[1].T
    copy = aligned(array)
    assert (copy.shape, copy.dtype, copy.ctypes.data % ALIGNMENT) == (array.shape, array.dtype, 0)
    assert copy.flags.c_contiguous
    assert not np.shares_memory(copy, array)
    np.testing.assert_array_equal(copy, array)


def test_a_packing_that_this_version_does_not_know_is_refused() -> None:
    with pytest.raises(LoweringError, match=r"in the packing 'turned'; this version knows columns\. Upgrade"):
        Packing("turned", {}).of(WEIGHTS[0], {"columns": np.copy})


def test_no_byte_of_a_library_or_its_weights_changes_unseen(tmp_path: Path) -> None:
    write_library(tmp_path / "m.so", [linked(HELD)], WEIGHTS)
    whole = (tmp_path / "m.so").read_bytes()
    for place in (*range(4, len(linked(HELD)), 5), len(whole) - 100, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "m.so").write_bytes(changed)
        with pytest.raises(LoweringError, match=r"truncated or damaged|truncated library"):
            read(tmp_path / "m.so")


def test_damaged_weights_of_an_archive_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "m.tar", [b"code"], HELD, WEIGHTS)
    content = (tmp_path / "m.tar").read_bytes()
    (tmp_path / "m.tar").write_bytes(content.replace(WEIGHTS[1].tobytes(), bytes(WEIGHTS[1].nbytes)))
    with pytest.raises(LoweringError, match=r"weights\.bin in it is damaged"):
        read(tmp_path / "m.tar")


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
    write_tar(tmp_path / "m.tar", [b"code"], ABOUT | change)
    write_library(tmp_path / "m.so", [linked(ABOUT | change)], [])
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variants", None),
        ("variants", {}),
        ("weights", [{"dtype": "O", "shape": [1]}]),
        ("weights", [{"dtype": "f4", "shape": [-1]}]),
    ],
)
def test_a_library_whose_manifest_is_not_whole_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    write_library(tmp_path / "m.so", [linked(HELD | {field: value})], WEIGHTS)
    with pytest.raises(LoweringError, match="the manifest in the library is not whole"):
        read(tmp_path / "m.so")


def test_a_member_that_is_mostly_holes_is_refused(tmp_path: Path) -> None:
    """It says that it has a PiB, and would be read as so many zeros."""
    sizes = {"GNU.sparse.size": str(2**50), "GNU.sparse.realsize": str(2**50), "GNU.sparse.map": "0,1"}
    with tarfile.open(tmp_path / "m.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo(MANIFEST)
        entry.size, entry.pax_headers = (
            1,
            sizes | {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.numblocks": "1"},
        )
        archive.addfile(entry, io.BytesIO(b"0"))
    with pytest.raises(LoweringError, match="with holes"):
        read(tmp_path / "m.tar")
