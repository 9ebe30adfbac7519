"""An artifact is one file that comes back whole without torch, and everything else is refused with a typed error."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.archive import LIBRARY, MANIFEST, MARK, write_tar
from reparam_compiler.lowering.runtime.description import Kernel, filled
from tests.support.old_artifacts import rewritten

pytestmark = pytest.mark.tvm

# A machine that only runs artifacts has tvm and numpy.
TORCH_FREE = """
import sys
for name in ("torch", "onnx", "onnxruntime", "networkx", "jaxtyping", "rich", "typer", "xgboost"):
    sys.modules[name] = None
import numpy as np
import reparam_compiler
inputs = np.load(sys.argv[1])
for path in sys.argv[2:]:
    np.savez(path + ".npz", *reparam_compiler.load(path).run(**inputs))
"""


@pytest.fixture(scope="module")
def compiled() -> lowering.Executable:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    return lowering.compile(net, torch.zeros(2, 3, 7, 5))


@pytest.fixture(scope="module")
def saved(compiled: lowering.Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "module.tar"
    compiled.save(path)
    return path


@pytest.fixture
def array(compiled: lowering.Executable) -> np.ndarray:
    return filled(compiled.inputs[0], "random")


def test_saved_and_loaded_computes_the_same_bits(compiled: lowering.Executable, saved: Path, array: np.ndarray) -> None:
    again = lowering.load(saved)
    assert (again.inputs, again.outputs, again.target) == (compiled.inputs, compiled.outputs, compiled.target)
    assert again.kernels == compiled.kernels
    np.testing.assert_array_equal(again.run(array)[0], compiled.run(array)[0])


@pytest.mark.parametrize("name", ["again.tar", "again.so"])
def test_loaded_artifact_is_saved_again(saved: Path, tmp_path: Path, array: np.ndarray, name: str) -> None:
    first = lowering.load(saved)
    first.save(tmp_path / name)
    again = lowering.load(tmp_path / name)
    assert (again.inputs, again.kernels, again.versions) == (first.inputs, first.kernels, first.versions)
    np.testing.assert_array_equal(again.run(array)[0], first.run(array)[0])


@pytest.fixture(scope="module")
def library(compiled: lowering.Executable, saved: Path) -> Path:
    compiled.save(saved.with_name("model.so"))
    return saved.with_name("model.so")


def test_format_goes_by_the_suffix_unless_it_is_given(compiled: lowering.Executable, saved: Path, tmp_path: Path) -> None:
    compiled.save(tmp_path / "m.so", format="tar")
    compiled.save(tmp_path / "m", format="so")
    assert tarfile.is_tarfile(tmp_path / "m.so")
    assert (tmp_path / "m").read_bytes()[:4] == b"\x7fELF"
    with pytest.raises(LoweringError, match=r"found format 'zip'; expected one of \('tar', 'so'\)"):
        compiled.save(tmp_path / "m.zip", format="zip")  # type: ignore[arg-type]


def test_library_in_the_archive_is_refused_without_its_weights(saved: Path, tmp_path: Path) -> None:
    with tarfile.open(saved) as file:
        (tmp_path / LIBRARY).write_bytes(file.extractfile(LIBRARY).read())
    with pytest.raises(LoweringError, match="was taken out of an archive, which has its weights"):
        lowering.load(tmp_path / LIBRARY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_archive_is_no_larger_than_the_weights_of_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    net, x = nn.Linear(700, 700).eval().to(dtype), torch.randn(1, 700, dtype=dtype)
    compiled = lowering.compile(net, x)
    compiled.save(tmp_path / "m.tar")
    compiled.save(tmp_path / "m.so")
    weights = sum(parameter.nbytes for parameter in net.parameters())
    assert (tmp_path / "m.tar").stat().st_size < 1.15 * weights
    expected = compiled.run(x)[0]
    for name in ("m.tar", "m.so"):
        loaded = lowering.load(tmp_path / name)
        np.testing.assert_array_equal(loaded.run(x)[0], expected)
        loaded.save(tmp_path / "again.tar")
        np.testing.assert_array_equal(lowering.load(tmp_path / "again.tar").run(x)[0], expected)


@pytest.mark.parametrize("kept", [3, 100, 5000, -1000, -1])
def test_truncated_library_is_refused(library: Path, tmp_path: Path, kept: int) -> None:
    (tmp_path / "cut.so").write_bytes(library.read_bytes()[:kept])
    with pytest.raises(LoweringError, match=r"cut\.so: .*truncated"):
        lowering.load(tmp_path / "cut.so")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_library_with_one_wrong_bit_is_refused(library: Path, tmp_path: Path, place: float) -> None:
    content = bytearray(library.read_bytes())
    content[int(len(content) * place)] ^= 1
    (tmp_path / "flipped.so").write_bytes(content)
    with pytest.raises(LoweringError, match="truncated or damaged"):
        lowering.load(tmp_path / "flipped.so")


def test_foreign_library_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    import _ctypes

    with pytest.raises(LoweringError, match="one of something else"):
        lowering.load(_ctypes.__file__)
    (tmp_path / "end.so").write_bytes(b"\x7fELF" + MARK)
    with pytest.raises(LoweringError, match="truncated or damaged"):
        lowering.load(tmp_path / "end.so")


def test_archive_of_the_old_tvmc_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"archive of the tvmc that TVM had until 0\.19.*compile the model again"):
        lowering.load(archive(tmp_path / "old.tar", {"mod.so": b"x", "mod.json": b"{}", "mod.params": b""}))


def test_format_1_is_still_read_but_not_made_a_library_of(tmp_path: Path, array: np.ndarray) -> None:
    lowering.compile(nn.ReLU().eval(), torch.from_numpy(array)).save(tmp_path / "saved.tar")
    kernels = [{"name": "relu", "algorithm": "general"}]
    rewritten(tmp_path / "saved.tar", tmp_path / "one.tar", 1, kernels=kernels)
    old = lowering.load(tmp_path / "one.tar")
    assert old.kernels[0] == Kernel(old.kernels[0].name, old.kernels[0].algorithm, 0, None)
    np.testing.assert_array_equal(old.run(array)[0], np.maximum(array, 0))
    with pytest.raises(LoweringError, match="describes 0 variants, and 1 shall be saved"):
        old.save(tmp_path / "one.so")


def test_format_3_is_still_read_and_written_anew(saved: Path, tmp_path: Path, array: np.ndarray) -> None:
    rewritten(saved, tmp_path / "three.tar", 3)
    old, new = lowering.load(tmp_path / "three.tar"), lowering.load(saved)
    assert (old.inputs, old.kernels, old.memory, old.batches) == (new.inputs, new.kernels, new.memory, ())
    np.testing.assert_array_equal(old.run(array)[0], new.run(array)[0])
    for name in ("again.tar", "again.so"):
        old.save(tmp_path / name)
        np.testing.assert_array_equal(lowering.load(tmp_path / name).run(array)[0], new.run(array)[0])


def test_linking_says_which_compiler_is_missing(compiled: lowering.Executable, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="found the compiler 'no-such-compiler', which is not on PATH"):
        compiled.save(tmp_path / "m.tar", compiler="no-such-compiler")
    with pytest.raises(LoweringError, match="linked already"):
        lowering.load(saved).save(tmp_path / "m.tar", compiler="g++")
    with pytest.raises(LoweringError, match=r"found compiler_options=\['--no-such-flag'\], but the library is linked already"):
        lowering.load(saved).save(tmp_path / "m.tar", compiler_options=["--no-such-flag"])
    compiled.save(tmp_path / "m.tar", compiler="g++", compiler_options=["-Wl,-s"])
    assert (tmp_path / "m.tar").stat().st_size <= saved.stat().st_size
    assert lowering.load(tmp_path / "m.tar").inputs == compiled.inputs
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tar"]


@pytest.fixture(scope="module")
def torch_free(compiled: lowering.Executable, saved: Path, library: Path) -> "subprocess.CompletedProcess[str]":
    """A process without torch or onnx that runs both artifacts on the same input, and writes what each gives beside it."""
    inputs = saved.with_name("in.npz")
    np.savez(inputs, **{compiled.inputs[0].name: filled(compiled.inputs[0], "random")})
    command = [sys.executable, "-c", TORCH_FREE, str(inputs), str(saved), str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("form", ["saved", "library"])
def test_loads_and_runs_without_torch_or_onnx_and_without_noise(
    compiled: lowering.Executable,
    torch_free: "subprocess.CompletedProcess[str]",
    array: np.ndarray,
    form: str,
    request: pytest.FixtureRequest,
) -> None:
    assert torch_free.returncode == 0, torch_free.stderr
    assert torch_free.stderr == ""
    found = np.load(f"{request.getfixturevalue(form)}.npz")["arr_0"]
    np.testing.assert_array_equal(found, compiled.run(array)[0])


def test_inputs_by_name_and_torch_tensors_are_taken(compiled: lowering.Executable, array: np.ndarray) -> None:
    by_name = compiled.run(**{compiled.inputs[0].name: array})[0]
    np.testing.assert_array_equal(by_name, compiled.run(torch.from_numpy(array))[0])


def test_result_does_not_change_when_the_model_runs_again(compiled: lowering.Executable, array: np.ndarray) -> None:
    first = compiled.run(array)[0]
    kept = first.copy()
    compiled.run(array * 2)
    np.testing.assert_array_equal(first, kept)


def test_a_result_is_the_caller_s_own_also_where_the_model_gives_its_input_back(array: np.ndarray) -> None:
    given = array.copy()
    for same in (nn.Identity(), nn.Flatten()):
        (found,) = lowering.compile(same.eval(), torch.from_numpy(array)).run(given)
        found[...] = 7
        np.testing.assert_array_equal(given, array)
        assert found.flags.owndata


def test_time_is_a_median_of_positive_seconds(compiled: lowering.Executable, array: np.ndarray) -> None:
    timing = compiled.timing(array, repeat=5, number=2)
    assert len(timing.seconds) == 5
    assert 0 < timing.median < 1
    assert compiled.time(repeat=3) > 0
    whole = compiled.timing(array, repeat=3, number=2, end_to_end=True)
    assert len(whole.seconds) == 3
    assert min(whole.seconds) > 0


def test_wrong_inputs_are_refused_with_found_and_expected(compiled: lowering.Executable, array: np.ndarray) -> None:
    name = compiled.inputs[0].name
    with pytest.raises(LoweringError, match=f"found 2 inputs; expected 1: {name}: float32"):
        compiled.run(array, array)
    with pytest.raises(LoweringError, match=rf"{name}: found shape \(2, 3, 7\); expected \(2, 3, 7, 5\)"):
        compiled.run(array[..., 0])
    with pytest.raises(LoweringError, match=f"{name}: found dtype float64; expected float32"):
        compiled.run(array.astype("float64"))
    with pytest.raises(LoweringError, match="found inputs nobody; expected all"):
        compiled.run(nobody=array)
    with pytest.raises(LoweringError, match="repeat=0"):
        compiled.time(array, repeat=0)
    with pytest.raises(LoweringError, match="fill mode: found 'seven'"):
        filled(compiled.inputs[0], "seven")


def test_missing_file_and_folder_are_refused(compiled: lowering.Executable, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="no such file"):
        lowering.load(tmp_path / "absent.tar")
    with pytest.raises(LoweringError, match="does not exist"):
        compiled.save(tmp_path / "absent" / "module.tar")


@pytest.mark.parametrize("kept", [0, 100, 700, 5000, -1000])
def test_truncated_file_is_refused(saved: Path, tmp_path: Path, kept: int) -> None:
    whole = saved.read_bytes().rstrip(b"\0")
    (tmp_path / "cut.tar").write_bytes(whole[:kept])
    with pytest.raises(LoweringError, match=r"cut\.tar: found a truncated or foreign file|is damaged"):
        lowering.load(tmp_path / "cut.tar")


def test_damaged_library_is_refused(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.tar").write_bytes(content)
    with pytest.raises(LoweringError, match="is damaged"):
        lowering.load(tmp_path / "flipped.tar")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def test_foreign_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="foreign"):
        lowering.load(archive(tmp_path / "a.tar", {"mod.so": b"x"}))
    with pytest.raises(LoweringError, match="archive of something else"):
        lowering.load(archive(tmp_path / "b.tar", {MANIFEST: b'{"magic": "other"}'}))
    with pytest.raises(LoweringError, match="archive of something else"):
        lowering.load(archive(tmp_path / "c.tar", {MANIFEST: b"[]"}))
    with pytest.raises(LoweringError, match="foreign"):
        lowering.load(archive(tmp_path / "d.tar", {MANIFEST: b"\xff\xfe"}))


def test_newer_format_is_refused_with_what_wrote_it(saved: Path, tmp_path: Path) -> None:
    with tarfile.open(saved) as file:
        manifest = json.load(file.extractfile(MANIFEST))
    manifest |= {"format": 99, "versions": {"reparam_compiler": "7.0"}}
    with pytest.raises(LoweringError, match=r"found format 99, written by .*7\.0.*Upgrade"):
        lowering.load(archive(tmp_path / "new.tar", {MANIFEST: json.dumps(manifest).encode()}))


@pytest.mark.parametrize(
    "change",
    [
        {"variants": [{"inputs": None}]},
        {"variants": [{"kernels": [{}]}]},
        {"variants": [{"outputs": [{"name": "y"}]}]},
        {"variants": [{"memory": {"x": 1}}]},
        {"variants": [{"weights": [7]}]},
        {"variants": []},
        {"variants": 1},
        {"weights": [{}]},
        {"versions": None},
        {"format": "two"},
    ],
)
def test_manifest_that_is_not_whole_is_refused(saved: Path, tmp_path: Path, change: dict[str, object]) -> None:
    with tarfile.open(saved) as file:
        manifest, content = json.load(file.extractfile(MANIFEST)), file.extractfile(LIBRARY).read()
    if isinstance(change.get("variants"), list):
        change = {"variants": [manifest["variants"][0] | each for each in change["variants"]]}
    write_tar(tmp_path / "m.tar", [content], manifest | {"arrays": [], "weights": []} | change)
    with pytest.raises(
        LoweringError, match=r"m\.tar: (the manifest in it is not whole|found format 'two'|found a truncated or foreign)"
    ):
        lowering.load(tmp_path / "m.tar")


def test_no_member_is_written_outside_and_links_are_not_followed(saved: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    with tarfile.open(saved) as file:
        members = {entry.name: file.extractfile(entry).read() for entry in file.getmembers()}
    lowering.load(archive(tmp_path / "more.tar", {**members, f"../{outside.name}": b"x", str(outside): b"x"}))
    assert not outside.exists()
    with tarfile.open(tmp_path / "link.tar", "w") as file:
        entry = tarfile.TarInfo(MANIFEST)
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
        file.addfile(entry)
    with pytest.raises(LoweringError, match="foreign"):
        lowering.load(tmp_path / "link.tar")


def test_interrupted_save_leaves_the_old_file(
    compiled: lowering.Executable, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "module.tar"
    path.write_bytes(saved.read_bytes())

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "addfile", stop)
    with pytest.raises(KeyboardInterrupt):
        compiled.save(path)
    assert path.read_bytes() == saved.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["module.tar"]


def test_scalars_keep_their_rank() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.relu(x) * scale, scale * 2

    x, scale = torch.randn(2, 3), torch.tensor(3.0)
    compiled = lowering.compile(Scaled().eval(), (x, scale))
    assert [spec.shape for spec in compiled.inputs] == [(2, 3), ()]
    for given in (scale, scale.numpy(), np.float32(3.0)):
        found = compiled.run(x, given)
        assert [array.shape for array in found] == [(2, 3), ()]
        np.testing.assert_allclose(found[0], 3 * x.relu().numpy(), rtol=1e-6)
        assert float(found[1]) == 6.0
    with pytest.raises(LoweringError, match=r"scale: found shape \(1,\); expected \(\)"):
        compiled.run(x, np.ones(1, "float32"))


def test_array_of_any_order_is_taken(compiled: lowering.Executable, array: np.ndarray) -> None:
    turned = np.asfortranarray(array)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(compiled.run(turned)[0], compiled.run(array)[0])


@pytest.mark.parametrize(
    "given",
    [torch.zeros(2, 3, 7, 5, dtype=torch.bfloat16), torch.zeros(2, 3, 7, 5).to_sparse(), [[1.0], [1.0, 2.0]]],
    ids=["bfloat16", "sparse", "ragged"],
)
def test_what_numpy_cannot_hold_is_refused(compiled: lowering.Executable, given: object) -> None:
    with pytest.raises(LoweringError, match=r"numpy cannot hold the .* expected float32 \(2, 3, 7, 5\)"):
        compiled.run(given)


RUNS_ALONE = """
import sys
from reparam_compiler.tvmc import main
assert main(["run", "missing.tar"]) == 4
assert main(["run", sys.argv[1], "--inputs", "missing.npz"]) == 4
assert not {"tvm", "torch"} & sys.modules.keys()
assert main(["run", sys.argv[1]]) == 0
assert "tvm" in sys.modules
assert "torch" not in sys.modules
"""


def test_the_command_waits_for_tvm_only_where_there_is_something_to_run_and_never_for_torch(saved: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUNS_ALONE, str(saved)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition(": ")[2].partition(";")[0] for line in done.stderr.splitlines()] == [
        "LoweringError: missing.tar: no such file",
        "LoweringError: missing.npz: no such file",
    ]
