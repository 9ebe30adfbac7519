"""Shapes as people type them, and packages that are missing: both are found before any work."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam_compiler
from reparam_compiler.api import fusing, pruning
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.models.io import save_model
from reparam_compiler.models.stated import named_shapes

pytest.importorskip("onnx")

import onnx

from tests.support.reparam_runs import reparam
from tests.support.tvmc_runs import tvmc, write_onnx

HERE = "tests.commands.test_shapes_and_extras"


class Net(nn.Module):
    """A conv and its norm; a second input that need not be given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.eval()

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`N 3 H W` to `N 8 H-2 W-2`."""
        y = self.norm(self.conv(x))
        return y if bias is None else y + bias


class Two(nn.Module):
    """Two inputs."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Any shape, twice."""
        return x + y


class Several(nn.Module):
    """As many inputs as one likes."""

    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return sum(xs, torch.zeros(()))


def deep() -> nn.Module:
    """A net with channels that can be cut."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))


def test_a_shape_without_a_name_is_that_of_the_only_input(tmp_path: Path) -> None:
    sizes = {"": (1, 3, 8, 7)}
    program = torch.export.export(nn.Conv2d(3, 8, 3), (torch.zeros(1, 3, 8, 7),))
    proto = onnx.load(write_onnx(tmp_path / "m.onnx", 1, "data:0"))
    for model, name in (
        (Net(), "x"),
        (torch.fx.symbolic_trace(Two()), None),
        (program, "input"),
        (proto, "data:0"),
        (Several(), "xs"),
    ):
        if name is None:
            with pytest.raises(
                UnsupportedModelError, match=r"found one shape without a name; the model has 2 inputs: x:\[…\] y:\["
            ):
                named_shapes(model, sizes)
        else:
            assert named_shapes(model, sizes) == {name: sizes[""]}
    assert named_shapes(Two(), {"y": (1,)}) == {"y": (1,)}


def test_every_command_takes_a_shape_without_a_name(tmp_path: Path) -> None:
    assert reparam("inspect", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]").exit_code == 0
    found = reparam("fuse", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]", "-o", tmp_path / "x.pt2")
    assert found.exit_code == 0, found.output
    assert reparam("equivalent", f"{HERE}:Net", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]").exit_code == 0
    refused = reparam("equivalent", f"{HERE}:Two", f"{HERE}:Two", "--input-shapes", "[1,3]")
    assert refused.exit_code == 3
    assert "the model has 2 inputs: x:[…] y:[…]" in refused.stderr


@pytest.mark.tvm
@pytest.mark.usefixtures("one_process")
def test_compile_takes_a_shape_without_a_name(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    done = tvmc(
        "compile", write_onnx(tmp_path / "m.onnx", "N", "data"), "--input-shapes", "[2,3,8,7]", "-o", tmp_path / "m.tar"
    )
    assert done.exit_code == 0, done.output
    assert "in data 2 3 8 7 float32" in " ".join(done.stdout.split())


def opened(path: Path) -> list[list[object]]:
    """The sizes of the inputs and outputs of a file; those of a program's inputs, as numbers or None."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    program = torch.export.load(path)
    named = [node for node in program.graph.find_nodes(op="placeholder") if node.name in program.graph_signature.user_inputs]
    return [[size if isinstance(size, int) else None for size in node.meta["val"].shape] for node in named]


def test_sizes_that_are_letters_stay_open_in_what_is_written(tmp_path: Path) -> None:
    found = reparam("fuse", f"{HERE}:Net", "--input-shapes", "[N,3,H,W]", "-o", tmp_path / "x.onnx")
    assert found.exit_code == 0, found.output
    assert "the open sizes are N=2, H=64, W=96 where the model is run" in found.stderr
    assert opened(tmp_path / "x.onnx") == [["N", 3, "H", "W"], ["N", 8, "H - 2", "W - 2"]]
    words = ["prune", "--ratio", "0.5", "--round-to", "1", f"{HERE}:deep", "--input-shapes", "input:[N,3,9,W]"]
    assert reparam(*words, "-o", tmp_path / "x.pt2").exit_code == 0
    assert opened(tmp_path / "x.pt2") == [[None, 3, 9, None]]


def test_verbs_that_write_nothing_take_open_sizes(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", "N", "data")
    for words in (["inspect", path], ["equivalent", f"{HERE}:Net", f"{HERE}:Net"], ["equivalent", path, path]):
        size = "[N,3,8,7]" if path in words else "[N,3,H,W]"
        assert reparam(*words, "--input-shapes", size).exit_code == 0


def test_a_size_that_the_model_fixes_is_not_written_as_open(tmp_path: Path) -> None:
    found = reparam("fuse", f"{HERE}:Two", "--input-shapes", "x:[N,3] y:[2,3]", "-o", tmp_path / "x.pt2", "--json")
    assert found.exit_code == 9  # it has no branches
    with pytest.raises(
        UnsupportedModelError, match=r"the model fixes size 0 of x at 2, counted from 0; give numbers there in place of N$"
    ):
        save_model(Two(), tmp_path / "x.pt2", example_inputs=(torch.ones(2, 3),) * 2, open_sizes=({0: "N"}, {}))


def test_compile_needs_numbers() -> None:
    found = reparam("compile", f"{HERE}:Net", "--input-shapes", "[N,3,8,7]")
    assert found.exit_code == 2
    assert found.stderr.strip().endswith("found the open size N in '[N,3,8,7]'; TVM compiles for one size: give a number for N")


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("[1,4,8,7]", "to have 3 channels, but got 4 channels instead; it runs on --input-shapes '[1,3,8,7]'"),
        ("x:[1,8,7,3]", "it runs on --input-shapes 'x:[1,3,7,3]'"),
        ("[3,8,7]", "it runs on --input-shapes '[1,3,8,7]'"),
        ("[8,7,3]", "it runs on --input-shapes '[1,3,8,7]'"),
        ("[1,3,8]", "it runs on --input-shapes '[1,3,8,8]'"),
        ("[1,3,2,2]", "Kernel size can't be greater than actual input size; give other sizes"),
    ],
)
@pytest.mark.parametrize("verb", ["fuse", "inspect"])
def test_a_wrong_rank_or_channel_count_says_what_to_type(verb: str, stated: str, said: str, tmp_path: Path) -> None:
    output = ["-o", tmp_path / "x.pt2"] if verb == "fuse" else []
    found = reparam(verb, f"{HERE}:Net", "--input-shapes", stated, *output)
    assert found.exit_code == 3
    (line,) = found.stderr.splitlines()
    assert f"--input-shapes '{stated}': Net does not run on inputs of shapes" in line
    assert line.endswith(said)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("[2,4,8,7]", "the model takes [N,3,8,7]; give --input-shapes '[2,3,8,7]'"),
        ("data:[3,8]", "the model takes data:[N,3,8,7]; give --input-shapes 'data:[N,3,8,7]'"),
        ("[M,3,H,7]", "the model takes [N,3,8,7]; give --input-shapes '[M,3,8,7]'"),
    ],
)
def test_what_a_file_states_of_its_inputs_holds(stated: str, said: str, tmp_path: Path) -> None:
    found = reparam("inspect", write_onnx(tmp_path / "m.onnx", "N", "data"), "--input-shapes", stated)
    assert (found.exit_code, found.stderr) == (3, f"reparam: UnsupportedModelError: {said}\n")


def test_images_without_pillow_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr(fusing, "fuse", working)
    words = ["prune", "--ratio", "0.5", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]", "--calibration"]
    found = reparam(*words, tmp_path / "images")
    assert found.exit_code == 3
    assert found.stderr.endswith("needs Pillow, which is not installed; pip install pillow, or give an .npz of arrays\n")
    assert "no such calibration file" in reparam(*words, tmp_path / "nowhere").stderr
    with pytest.raises(UnsupportedModelError, match="needs Pillow"):
        reparam_compiler.prune(Net(), ratio=0.5, calibration=tmp_path / "images")


def unbuilt() -> nn.Module:
    """A factory whose torchvision is built for another torch."""
    raise RuntimeError("operator torchvision::nms does not exist")


def test_a_torchvision_of_another_torch_is_said_with_what_to_type() -> None:
    found = reparam("inspect", f"{HERE}:unbuilt")
    assert found.exit_code == 3
    assert "torchvision's compiled ops do not load beside torch" in found.stderr
    assert found.stderr.endswith("take both from one index: pip install --force-reinstall torch torchvision\n")


def working(*_: object, **__: object) -> None:
    raise AssertionError("work was begun")


@pytest.mark.parametrize(
    ("missing", "words", "said"),
    [
        ("onnx_graphsurgeon", ["inspect", "{folder}/m.onnx"], "m.onnx: reading ONNX needs onnx_graphsurgeon"),
        (
            "onnxscript",
            ["fuse", f"{HERE}:Net", "--input-shapes", "[1,3,8,7]", "-o", "{folder}/x.onnx"],
            "as ONNX needs onnxscript",
        ),
        (
            "onnxruntime",
            ["prune", f"{HERE}:Net", "--latency", "0.5", "--input-shapes", "[1,3,8,7]"],
            "--latency needs onnxruntime",
        ),
    ],
)
def test_a_missing_package_is_said_before_the_work(
    missing: str, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_onnx(tmp_path / "m.onnx", 1)
    monkeypatch.setitem(sys.modules, missing, None)
    for home, verb in ((fusing, "fuse"), (fusing, "inspect"), (pruning, "prune")):
        monkeypatch.setattr(home, verb, working)
    found = reparam(*(word.format(folder=tmp_path) for word in words))
    assert found.exit_code == 3
    (line,) = found.stderr.splitlines()
    assert said in line
    assert line.endswith(", not installed here: pip install 'reparam_compiler[onnx]'")
