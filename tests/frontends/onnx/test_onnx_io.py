"""Files are read or refused, and written whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from reparam_compiler.checking.onnx_written import compare_fused_onnx
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx import io as onnx_io
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from tests.support.onnx_models import model_of, normal, run

FEEDS = {"x": normal(1, 16, 5, 4)}


def model() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    return model_of(nodes, {"x": (1, 16, 5, 4)}, ["y"], {"w": normal(32, 16, 1, 1), "b": normal(32)})


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    onnx_io.save(model(), tmp_path / "m.onnx")
    assert onnx_io.load(tmp_path / "m.onnx") == model()
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_external_data_are_read_with_the_model(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    np.testing.assert_array_equal(run(onnx_io.load(tmp_path / "m.onnx"), FEEDS)[0], run(model(), FEEDS)[0])


def test_large_external_data_stay_in_their_file_until_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    monkeypatch.setattr(onnx_io, "IN_MEMORY", 0)
    lazy = onnx_io.load(tmp_path / "m.onnx")
    assert not lazy.graph.initializer[0].raw_data
    reading = OnnxFrontend().read(lazy)
    weight = reading.graph["y"].param(1)
    assert weight is not None
    np.testing.assert_array_equal(weight.load(), normal(32, 16, 1, 1))
    found = compare_fused_onnx(lazy, reading.write(reading.graph), None)
    assert found is not None
    assert found.difference.max_abs == 0
    (tmp_path / "m.data").unlink()
    with pytest.raises(UnsupportedModelError, match=r"w: its elements should be in 'm\.data'"):
        weight.load()


def test_what_is_too_large_for_one_message_goes_into_a_second_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert onnx_io.save(model(), path, largest=1024) == (path, tmp_path / "m.onnx.data")
    assert {entry.name for entry in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert onnx_io.unread_weights(path) == []
    onnx.checker.check_model(str(path))
    assert path.stat().st_size < 1024
    np.testing.assert_array_equal(run(onnx_io.load(path), FEEDS)[0], run(model(), FEEDS)[0])
    assert onnx_io.save(model(), path, largest=1024) == (path, tmp_path / "m.onnx.1.data")
    np.testing.assert_array_equal(run(onnx_io.load(path), FEEDS)[0], run(model(), FEEDS)[0])
    assert onnx_io.unread_weights(path) == [tmp_path / "m.onnx.data"]
    (tmp_path / "m.onnx.old.data").touch()  # no name of ours
    assert onnx_io.save(model(), path) == (path,)
    assert onnx_io.unread_weights(path) == [tmp_path / "m.onnx.1.data", tmp_path / "m.onnx.data"]


KILLED = """
import os, signal, sys
import os
import signal
import subprocess
import sys
from pathlib import Path
from reparam_compiler.frontends.onnx import io
replace = Path.replace

def replaced(part, target):
    if target.suffix == ".onnx":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(part, target)

Path.replace = replaced
io.save(io.load(sys.argv[1]), sys.argv[2], largest=1024)
"""


@pytest.mark.parametrize("largest", [1024, None])
def test_weights_of_a_model_that_a_killed_process_did_not_put_in_place_are_removed(largest: int | None, tmp_path: Path) -> None:
    path, env = tmp_path / "m.onnx", {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    onnx_io.save(model(), path, largest=1024)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(path)], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 4
    np.testing.assert_array_equal(run(onnx_io.load(path), FEEDS)[0], run(model(), FEEDS)[0])
    onnx_io.save(model(), path, largest=largest)
    assert {entry.name for entry in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"} | ({"m.onnx.1.data"} if largest else set())
    np.testing.assert_array_equal(run(onnx_io.load(path), FEEDS)[0], run(model(), FEEDS)[0])


@pytest.mark.parametrize("is_placed", [False, True])
def test_an_interrupt_takes_the_weights_away_unless_the_model_is_in_place(
    is_placed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "m.onnx", Path.replace

    def interrupted(part: Path, target: Path) -> None:
        if target != path or is_placed:
            replace(part, target)
        if target == path:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        onnx_io.save(model(), path, largest=1024)
    assert {entry.name for entry in tmp_path.iterdir()} == ({"m.onnx", "m.onnx.data"} if is_placed else set())


def test_a_model_with_external_data_is_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    monkeypatch.setattr(onnx_io, "IN_MEMORY", 0)
    onnx_io.save(onnx_io.load(tmp_path / "m.onnx"), tmp_path / "other.onnx")
    (tmp_path / "m.onnx").unlink()
    np.testing.assert_array_equal(
        run(onnx.load(tmp_path / "other.onnx", load_external_data=False), FEEDS)[0], run(model(), FEEDS)[0]
    )


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", b"\x08\x07"])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=r"garbage\.onnx: found no ONNX model"):
        onnx_io.load(path)


def test_missing_external_data_are_refused(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    with pytest.raises(UnsupportedModelError, match="external data cannot be read"):
        onnx_io.load(tmp_path / "m.onnx")


def test_a_failed_save_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"older")
    broken = model()
    broken.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    broken.graph.initializer[0].external_data.add(key="location", value="nowhere.data")
    with pytest.raises(UnsupportedModelError, match="nowhere"):
        onnx_io.save(broken, path, largest=16)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"older"
