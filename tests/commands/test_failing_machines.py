"""How commands end on a machine that fails: Ctrl-C, a closed pipe, a full disk, a folder that cannot be written."""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler.api import fusing, pruning
from reparam_compiler.commands import printing
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.lowering.search.in_net import Contest
from reparam_compiler.models.io import load_model, save_model
from reparam_compiler.tvmc.failing import CLOSED, INTERRUPTED
from tests.support import instant_trials
from tests.support.reparam_runs import error_line, reparam
from tests.support.tvmc_runs import tvmc, write_onnx

WRITING = (
    ("fuse", "{net}.onnx", "-o", "{out}/x.onnx"),
    ("fuse", "{net}.pt2", "-o", "{out}/x.pt2"),
    ("report", "{net}.onnx", "-o", "{out}/x.html"),
    ("prune", "{net}.onnx", "--ratio", "0.5", "--round-to", "1", "--manifest", "{out}/x.json"),
    ("compile", "{net}.onnx", "-o", "{out}/x.tar", "--no-verify"),
)
"""Commands, each with what it writes into the folder `out`."""


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may become larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "module", "name"),
    [
        (("inspect", "{net}.onnx"), fusing, "inspect"),
        (("fuse", "{net}.onnx", "-o", "{out}/x.onnx"), fusing, "fuse"),
        (("prune", "{net}.onnx", "--ratio", "0.5", "-o", "{out}/x.onnx"), pruning, "prune"),
    ],
    ids=("inspect", "fuse", "prune"),
)
def test_ctrl_c_is_one_line_and_130(
    words: tuple[str, ...], module: Any, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, interrupted)
    found = reparam(*(word.format(net=folder / "net", out=tmp_path) for word in words), "--json")
    assert found.exit_code == INTERRUPTED == 130
    assert "ended by Ctrl-C" in error_line(found, "KeyboardInterrupt")
    assert json.loads(found.stdout)["error"] == "KeyboardInterrupt"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "called"), [("compile", "compile"), ("tune", "measured")])
def test_ctrl_c_ends_tvmc_as_well(command: str, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"reparam_compiler.tvmc.model.{called}", interrupted)
    done = tvmc(command, write_onnx(tmp_path / "m.onnx", 1), "-o", tmp_path / "x.tar")
    assert done.exit_code == INTERRUPTED
    assert done.stderr == "tvmc: KeyboardInterrupt: ended by Ctrl-C; what was not written yet is as it was before\n"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_ctrl_c_is_known_where_tvm_makes_another_error_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("reparam_compiler.tvmc.model.compile", compiled)
    done = tvmc("compile", write_onnx(tmp_path / "m.onnx", 1), "-o", tmp_path / "x.tar")
    assert (done.exit_code, done.stderr.count("\n")) == (INTERRUPTED, 1)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    monkeypatch.setattr("reparam_compiler.tvmc.model.compile", lambda *_, **__: pytest.fail("again"))
    assert tvmc("compile", tmp_path / "none.onnx", "-o", tmp_path / "x.tar").exit_code == 3


@pytest.mark.parametrize("room", [True, False])
def test_a_search_that_was_interrupted_is_told_whatever_becomes_of_its_report(
    room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that can be compiled, and not read."""

    def unread(*_: Any, **__: Any) -> None:
        raise UnsupportedModelError("node 7: no such thing")

    def full(*_: Any) -> None:
        raise OSError("no room")

    instant_trials.install(monkeypatch)
    monkeypatch.setattr(Contest, "decided", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    monkeypatch.setattr("reparam_compiler.api.compiling.fuse_source", unread)
    monkeypatch.setattr("reparam_compiler.reporting.compiled.open", unread)
    if not room:
        monkeypatch.setattr("reparam_compiler.reporting.writing.written_whole", full)
    report = tmp_path / "search.json"
    done = tvmc("tune", write_onnx(tmp_path / "m.onnx", 1), "--trials", 1, "-o", tmp_path / "records", "--report", report)
    assert done.exit_code == (INTERRUPTED if room else 1)
    assert "records: 1 new of 1 records" in done.stdout
    assert "tvmc: ended by Ctrl-C; the same command goes on from here\n" in done.stderr
    if room:
        interrupted = "the search was interrupted: the same command goes on from here"
        assert json.loads(report.read_text())["remarks"] == ["its graph is not shown: node 7: no such thing", interrupted]
    else:
        assert done.stderr.endswith("tvmc: OSError: no room\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("heard", [True, False])
def test_a_closed_pipe_is_one_line_and_141(heard: bool, unbuffered: str) -> None:
    """heard: whether stderr is another pipe, which is read."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "reparam_compiler.tvmc", "--version"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": unbuffered}
    stderr = subprocess.PIPE if heard else writing
    done = subprocess.run(command, env=env, stdout=writing, stderr=stderr, text=True, check=False)
    os.close(writing)
    assert done.returncode == CLOSED == 141
    said = "tvmc: ClosedOutputError: what reads the output closed it before all was printed\n"
    assert done.stderr == (said if heard else None)


def test_what_is_drawn_into_a_closed_pipe_raises_and_does_not_end_the_process() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    out: Console = printing.console(as_json=False)
    out.file = Closed()
    with pytest.raises(BrokenPipeError):
        out.print("a line")


@pytest.mark.parametrize("words", WRITING, ids=lambda words: " ".join((words[0], words[-2], words[-1])))
def test_a_full_disk_is_one_line_and_leaves_what_was_there(words: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    given = [word.format(net=folder / "net", out=tmp_path) for word in words]
    target = next(Path(word) for word in given if word.startswith(str(tmp_path)))
    target.write_text("older")
    with room_for(200):
        found = reparam(*given)
    assert found.exit_code == 1
    line = error_line(found, "OSError")
    assert "File too large; what was there before is as it was" in line
    assert target.name in line
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_a_program_too_large_for_the_disk_raises_what_the_disk_said(folder: Path, tmp_path: Path) -> None:
    """torch ends the process where a write fails."""
    program = load_model(folder / "net.pt2")
    with room_for(4000), pytest.raises(OSError, match="File too large; what was there before is as it was"):
        save_model(program, tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", WRITING, ids=lambda words: " ".join((words[0], words[-2], words[-1])))
def test_a_folder_that_cannot_be_written_is_said_before_any_work(
    words: tuple[str, ...], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write where the mode says otherwise
    monkeypatch.setattr(fusing, "fuse", interrupted)
    monkeypatch.setattr("reparam_compiler.api.compiling.compile_reported", interrupted)
    found = reparam(*(word.format(net=folder / "net", out=tmp_path) for word in words))
    assert found.exit_code in (1, 4)
    assert "cannot be written; name a file in another" in found.stderr


@pytest.mark.parametrize("words", WRITING, ids=lambda words: " ".join((words[0], words[-2], words[-1])))
def test_an_output_that_is_a_folder_is_said(words: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    given = [word.format(net=folder / "net", out=tmp_path) for word in words]
    next(Path(word) for word in given if word.startswith(str(tmp_path))).mkdir()
    found = reparam(*given)
    assert found.exit_code in (1, 4)
    assert "found a folder; expected the name of a file" in found.stderr
    assert len(found.stderr.splitlines()) == 1
