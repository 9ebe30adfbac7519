"""A file is there as a whole, or as it was before."""

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.core.files import (
    UNREADABLE,
    check_place,
    remove_abandoned,
    scratch_folder,
    temporary_files_removed,
    written_whole,
)


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
    with pytest.raises(IsADirectoryError, match="found a folder; expected the name of a file"):
        check_place(tmp_path)
    check_place("cut.json")


KILLED = """
import os, signal
from reparam_compiler.core.files import scratch_folder
with scratch_folder() as folder:
    (folder / "library.so").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_nothing_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "of_others").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with scratch_folder() as folder:
        (folder / "kept").touch()
        assert subprocess.run([sys.executable, "-c", KILLED], env=env, check=False).returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 3
        assert remove_abandoned() == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["of_others", folder.name]
        assert (folder / "kept").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["of_others"]


KILLED_WRITING = """
import os, signal, sys
from reparam_compiler.core.files import written_whole
with written_whole(sys.argv[1]) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_not_what_is_being_written(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    target = tmp_path / "net[1].onnx"
    target.write_bytes(b"older")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITING, str(target)], env=env, check=False)
    assert (done.returncode, target.read_bytes(), len(list(tmp_path.iterdir()))) == (-signal.SIGKILL, b"older", 2)
    with written_whole(target) as one:
        one.write_bytes(b"one")
        with written_whole(target) as other:
            assert sorted(tmp_path.iterdir()) == sorted([target, one, other])
            other.write_bytes(b"other")
        assert target.read_bytes() == b"other"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"one"]


def test_a_file_that_was_taken_for_an_abandoned_one_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch, made = Path.touch, list[Path]()

    def touched(path: Path, **how: Any) -> None:
        touch(path, **how)
        if made.append(path) or len(made) == 1:
            path.unlink()

    monkeypatch.setattr(Path, "touch", touched)
    with written_whole(tmp_path / "cut.json") as part:
        part.write_text("{}")
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["cut.json"]


def test_where_nothing_can_be_written_is_said_before_and_what_had_no_room_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "cut.json"
    full = r"No space left on device; what was there before is as it was: '.*cut\.json'"
    with pytest.raises(OSError, match=full), written_whole(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="other"), written_whole(target):
        (tmp_path / "other").read_text()

    def touched(path: Path, **_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", touched)
        with pytest.raises(OSError, match=full):
            write_half(target)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write where the mode says otherwise
    with pytest.raises(PermissionError, match=r"cut.json: the folder .* cannot be written; name a file in another"):
        check_place(target)
    assert not list(tmp_path.iterdir())


def npz(save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, x=np.arange(20, dtype="float32"), y=np.zeros((2, 3)))
    return buffer.getvalue()


WHOLE = [npz(np.savez), npz(np.savez_compressed)]


@pytest.mark.filterwarnings("ignore")  # numpy's, of headers that make no sense
@given(
    which=st.integers(0, 1), places=st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), max_size=2), data=st.data()
)
def test_a_broken_npz_raises_nothing_else(which: int, places: list[tuple[int, int]], data: st.DataObject) -> None:
    content = bytearray(WHOLE[which])
    for place, byte in places:
        content[place % len(content)] = byte
    kept = data.draw(st.integers(0, len(content))) if not places else len(content)
    try:
        with np.load(io.BytesIO(bytes(content[:kept])), allow_pickle=False) as archive:
            dict(archive)
    except UNREADABLE:
        return
    assert places or kept == len(content)


def test_temporary_files_of_a_program_go_with_it_or_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TMPDIR", raising=False)
    (tmp_path / "reparam-scratch-abandoned").mkdir()
    with temporary_files_removed():
        made = Path(tempfile.mkdtemp())
        assert Path(os.environ["TMPDIR"]) == made.parent
        assert [path.name for path in tmp_path.iterdir()] == [made.parent.name]
    assert not list(tmp_path.iterdir())
    assert (tempfile.tempdir, os.environ.get("TMPDIR")) == (str(tmp_path), None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with temporary_files_removed():
        assert tempfile.tempdir == str(tmp_path / "none")
