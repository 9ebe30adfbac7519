"""A file is there as a whole, or as it was before."""

from pathlib import Path

import pytest

from reparam_compiler.core.files import written_whole


def write_half(target: Path) -> None:
    with written_whole(target) as part:
        part.write_bytes(b"half")
        raise OSError("disk full")


@pytest.mark.parametrize("old", [None, b"older"])
def test_what_fails_leaves_what_was_there_and_nothing_beside_it(old: bytes | None, tmp_path: Path) -> None:
    target = tmp_path / "net.pt2"
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(OSError, match="disk full"):
        write_half(target)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if old is None else [old])
    with written_whole(target) as part:
        assert (part.suffix, part.parent) == (".pt2", tmp_path)
        part.write_bytes(b"whole")
        assert target.exists() == (old is not None)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def test_a_folder_that_is_missing_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cut.json: the folder .*none does not exist; make it first"):
        write_half(tmp_path / "none" / "cut.json")
