"""`compile(batches=…)`: every kind of model for any number of samples; what mixes samples is refused when it is compiled."""

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tvm")

import reparam_compiler
from reparam_compiler import lowering
from reparam_compiler.checking.apart import check_apart
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.build import Form, compile_forms
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from tests.support.called import Called
from tests.support.tvmc_runs import tvmc, write_onnx

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
ELSEWHERE = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"


class Branches(nn.Module):
    """Two branches with norms, a pool and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.dense(x)) + self.norms[1](self.point(x)))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Branches()
    randomise_batch_norm(net)
    return net.eval()


def samples(count: int) -> Tensor:
    return torch.randn(count, 4, 7, 5, generator=torch.Generator().manual_seed(count))


def as_onnx(model: nn.Module, **named: Any) -> Any:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated
        torch.onnx.export(model, (samples(1),), file, dynamo=False, input_names=["x"], **named)
    return onnx.load_from_string(file.getvalue())


def native(model: nn.Module, kind: str) -> tuple[Any, tuple[Tensor, ...] | None]:
    """A model of a kind, and the example inputs that it needs."""
    if kind == "module":
        return model, (samples(1),)
    if kind == "graph module":
        return torch.fx.symbolic_trace(model), (samples(2),)
    if kind == "program":
        return torch.export.export(model, (samples(2),), dynamic_shapes=({0: torch.export.Dim("batch")},)), None
    if kind == "onnx":
        return as_onnx(model), None
    return as_onnx(model, dynamic_axes={"x": {0: "n"}}), None


@pytest.mark.parametrize("batches", [(1, 4), (3,)])
@pytest.mark.parametrize("kind", ["module", "graph module", "program", "onnx", "open onnx"])
def test_every_kind_runs_any_number_of_samples(kind: str, batches: tuple[int, ...], model: nn.Module) -> None:
    subject, inputs = native(model, kind)
    compiled = reparam_compiler.compile(subject, inputs, batches=batches)
    assert (compiled.batches, compiled.verified) == (batches, True)
    assert [kernel.name.startswith("conv_") for kernel in compiled.kernels].count(True) == 1  # it was fused
    for count in (1, 3, 4, 6):
        np.testing.assert_allclose(compiled.run(samples(count))[0], model(samples(count)).detach().numpy(), **FLOAT32)
    assert compiled.run(samples(0))[0].shape == (0, 3)


def test_one_sample_at_a_time_is_shown_to_be_right_beside_two(model: nn.Module) -> None:
    compiled = reparam_compiler.compile(model, samples(1), batches=(1,))
    np.testing.assert_allclose(compiled.run(samples(3))[0], model(samples(3)).detach().numpy(), **FLOAT32)
    with pytest.raises(LoweringError, match="softmax: sample 1 of a batch of 2 comes out otherwise than alone"):
        reparam_compiler.compile(Called(lambda x: x.softmax(0)).eval(), samples(1), batches=(1,))


def test_input_shapes_name_the_other_sizes(model: nn.Module) -> None:
    compiled = reparam_compiler.compile(model, input_shapes={"x": (1, 4, 7, 5)}, batches=[4, 1])
    assert [variant.inputs[0].shape for variant in compiled.variants] == [(1, 4, 7, 5), (4, 4, 7, 5)]
    open_model = as_onnx(model, dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}})
    compiled = reparam_compiler.compile(open_model, input_shapes={"x": (9, 4, 7, 5)}, batches=(1, 2))
    assert compiled.run(samples(3))[0].shape == (3, 3)
    with pytest.raises(LoweringError, match="x: found the shape"):
        reparam_compiler.compile(open_model, batches=(1, 2))


def test_a_program_of_one_batch_is_refused_with_what_to_export(model: nn.Module) -> None:
    program = torch.export.export(model, (samples(1),))
    message = (
        r"x: the program was exported for a batch of 1 alone, and batches ask for 4.*dynamic_shapes=\{'x': \{0: torch\.export"
    )
    with pytest.raises(LoweringError, match=message):
        reparam_compiler.compile(program, batches=(1, 4))
    four = reparam_compiler.compile(torch.export.export(model, (samples(4),)), batches=(4,))
    assert four.run(samples(5))[0].shape == (5, 3)


MIXED: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda x: x.softmax(0),
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "flip": lambda x: x.flip(0),
    "cumsum": lambda x: x.cumsum(0),
    "pairs": lambda x: x.reshape(-1, 70).softmax(0).reshape(x.shape),
    "neighbours": lambda x: x + x.roll(1, 0),
    "places": lambda x: x * torch.arange(1.0, 1 + len(x)).reshape(-1, 1, 1, 1),
    "norm": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "sizes": lambda x: x / len(x),
}


# what depends on how many samples there are, and on nothing of them, shows at two sizes alone
@pytest.mark.parametrize(("name", "batches"), [*((n, (1, 4)) for n in MIXED), *((n, (4,)) for n in MIXED if n != "sizes")])
def test_what_mixes_samples_is_refused_by_the_name_of_its_output(name: str, batches: tuple[int, ...]) -> None:
    with pytest.raises(LoweringError, match=r"(: sample \d of a batch of 4 comes out otherwise than alone|norm)"):
        reparam_compiler.compile(Called(MIXED[name]).eval(), samples(4), batches=batches, fuse=False)


OPS = {
    "softmax": "softmax",
    "mean": "mean",
    "flip": "flip",
    "cumsum": "cumsum",
    "neighbours": "roll",
    "inner": "softmax",
    "behind": "softmax",
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("kind", ["module", "onnx"])
def test_the_op_that_mixes_is_named(name: str, kind: str) -> None:
    mixed = MIXED | {
        "inner": lambda x: torch.relu(torch.relu(x).softmax(0)) + 1,
        "behind": lambda x: torch.relu(x.transpose(0, 1).softmax(1).transpose(0, 1)),
    }
    net = Called(mixed[name]).eval()
    if kind == "onnx" and name in ("flip", "neighbours"):
        pytest.skip("torch's exporter writes it for one batch")
    subject = as_onnx(net, dynamic_axes={"x": {0: "n"}}) if kind == "onnx" else net
    with pytest.raises(LoweringError, match="mixes samples, or what it reads does") as refused:
        reparam_compiler.compile(subject, None if kind == "onnx" else samples(4), batches=(1, 4), fuse=False)
    named = re.search(r"\(by \S+\)\. (.+) mixes", str(refused.value))
    assert named is not None
    assert OPS[name] in named[1].lower()


def test_where_no_op_can_be_named_the_usual_ones_are() -> None:
    with pytest.raises(LoweringError, match="An op of the model mixes samples, such as a softmax"):
        reparam_compiler.compile(Called(MIXED["places"]).eval(), samples(4), batches=(1, 4), fuse=False)


def test_bfloat16_which_nothing_compares_is_refused() -> None:
    with pytest.raises(LoweringError, match=r"x: found bfloat16, which numpy does not have.*float16.*without batches"):
        reparam_compiler.compile(Called(lambda x: x * 2).eval(), samples(1).bfloat16(), batches=(1, 2))


def test_an_onnx_model_that_states_its_batch_within_is_refused() -> None:
    onnx = pytest.importorskip("onnx")
    helper, sizes = onnx.helper, [1, 1, 2, 70]
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["pairs"]),
        helper.make_node("Softmax", ["pairs"], ["soft"], axis=3),
        helper.make_node("Flatten", ["soft"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 140]) for name in "xy")
    stated = onnx.numpy_helper.from_array(np.array(sizes), "sizes")
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [stated]), opset_imports=opset, ir_version=10)
    with pytest.raises(
        LoweringError, match="That is at a batch of 2; a model that was exported for one batch may state it within"
    ):
        reparam_compiler.compile(made, batches=(1, 2))
    assert reparam_compiler.compile(made).run(np.ones((1, 140), "float32"))[0].shape == (1, 140)


def test_inputs_of_several_first_sizes_are_refused_before_anything_is_compiled(model: nn.Module) -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(
        LoweringError, match=r"batches: found the first sizes 2 in input 0, 1 in input 1; every input must have"
    ):
        reparam_compiler.compile(Add().eval(), (torch.zeros(2, 3), torch.zeros(1, 3)), batches=(1, 4))


def test_a_target_elsewhere_is_checked_on_this_machine(model: nn.Module) -> None:
    compiled = reparam_compiler.compile(model, samples(1), target=ELSEWHERE, batches=(1, 2))
    assert (compiled.batches, compiled.runs_here, compiled.verified) == ((1, 2), False, False)
    assert "the same import, compiled for this machine, was compared" in compiled.verification
    with pytest.raises(LoweringError, match="comes out otherwise than alone"):
        reparam_compiler.compile(
            Called(lambda x: x.softmax(0)).eval(), samples(1), target=ELSEWHERE, batches=(1, 2), verify=False
        )


def test_a_variant_that_computes_something_else_is_found(model: nn.Module) -> None:
    other = Branches().eval()
    compiled = compile_forms([Form(model, (samples(1),)), Form(other, (samples(4),))], any_batch=True)
    with pytest.raises(LoweringError, match=r"sample 1 of a batch of 4 comes out otherwise than alone .*\. Do that$"):
        check_apart(compiled, advice="Do that")


def test_rounding_that_a_model_amplifies_is_no_mixing() -> None:
    torch.manual_seed(0)
    steep = Called(lambda x: torch.sin(1e6 * x.mean((2, 3))))
    net = nn.Sequential(nn.Conv2d(4, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), steep).eval()
    assert reparam_compiler.compile(net, samples(1), batches=(1, 8), verify=False).batches == (1, 8)


def test_the_command_line_compiles_and_runs_any_number(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", "n")
    done = tvmc("compile", path, "--batches", "1,4", "-o", tmp_path / "m.tar")
    assert done.exit_code == 0, done.output
    assert "1 is taken" not in done.stderr
    lines = done.stdout.splitlines()  # with a time behind it where a busy machine takes a millisecond
    assert [sum(line.startswith(f"batch {batch}") for line in lines) for batch in (1, 4)] == [1, 1]
    np.savez(tmp_path / "in.npz", x=np.ones((6, 3, 8, 7), "float32"))
    ran = tvmc("run", tmp_path / "m.tar", "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--print-time")
    assert ran.exit_code == 0, ran.output
    assert "y: float32 (6, 8, 6, 5)" in ran.stdout
    assert np.load(tmp_path / "out.npz")["y"].shape == (6, 8, 6, 5)
    filled = tvmc("run", tmp_path / "m.tar", "--batch", "4", "--profile")
    assert "y: float32 (4, 8, 6, 5)" in filled.stdout
    refused = tvmc("run", tmp_path / "m.tar", "-i", tmp_path / "in.npz", "--batch", "4")
    assert refused.exit_code == 4
    assert "--batch: found inputs of 6 samples" in refused.stderr
    assert "compiled for (1, 4)" in tvmc("run", tmp_path / "m.tar", "--batch", "7", "--profile").stderr
    assert tvmc("compile", path, "--batches", "1,zero", "-o", tmp_path / "m.tar").exit_code == 2
    fixed = tvmc("compile", path, "--input-shapes", "x:[2,3,8,7]", "-o", tmp_path / "one.tar")
    assert fixed.exit_code == 0
    assert "an artifact of one size" in tvmc("run", tmp_path / "one.tar", "--batch", "2").stderr


def test_lowering_alone_has_one_size(model: nn.Module) -> None:
    compiled = lowering.compile(model, samples(2))
    assert (compiled.batches, compiled.any_batch, len(compiled.variants)) == ((), False, 1)
