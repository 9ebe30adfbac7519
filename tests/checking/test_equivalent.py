"""equivalent(): nothing but rounding is equal, whatever the kinds of the two models; errors of conversions are not."""

import copy
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from reparam_compiler import UnsupportedModelError, equivalent, fuse
from reparam_compiler.checking import runners as runs
from reparam_compiler.checking.tolerances import BY_DTYPE
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from tests.support.onnx_models import exported, model_of, normal
from tests.support.small_models import Float32Only

X = (torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1)),)


class Block(nn.Module):
    """Two branches with norms, their sum rectified, and a conv that does not pad."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(3, 8, 1, bias=False)
        self.wide_bn, self.narrow_bn = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`N 3 H W` to `N 4 H-2 W-2`."""
        return self.last(torch.relu(self.wide_bn(self.wide(x)) + self.narrow_bn(self.narrow(x))))


class Returns(nn.Module):
    """Gives what a function makes of the sum and the double of its input."""

    def __init__(self, arrange: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.arrange = arrange

    def forward(self, x: Tensor) -> Any:
        """Any structure of tensors."""
        return self.arrange(x + 1, 2 * x)


def block() -> Block:
    torch.manual_seed(0)
    return randomise_batch_norm(Block()).eval()


def changed(change: Callable[[Block], object]) -> Block:
    model = block()
    with torch.no_grad():
        change(model)
    return model


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The block and its fused form, as every kind of model."""
    folder = tmp_path_factory.mktemp("kinds")
    model = block()
    traced = fuse(model, X)
    assert isinstance(traced, fx.GraphModule)
    program = torch.export.export(model, X, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "block.pt2")
    proto = exported(model, X[0], folder, dynamo=False, dynamic=True)
    return {
        "module": model,
        "traced": traced,
        "program": program,
        "fused program": fuse(program),
        "proto": proto,
        "fused proto": fuse(proto),
        "onnx path": folder / "model.onnx",
        "pt2 path": str(folder / "block.pt2"),
    }


NAMES = ("module", "traced", "program", "fused program", "proto", "fused proto", "onnx path", "pt2 path")


@pytest.mark.parametrize(("a", "b"), [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]])
def test_any_two_kinds_of_one_model_are_equal_in_float64(a: str, b: str, kinds: dict[str, Any]) -> None:
    found = equivalent(kinds[a], kinds[b], X)
    assert found, found.to_text()
    assert found.equal
    assert found.dtype == "float64"
    assert found.relative <= found.tolerance == BY_DTYPE["f32"].floor
    assert found.tried[:2] == ("example inputs 2x3x9x7", "random inputs 2x3x9x7")
    assert "random inputs 3x3x9x7" in found.tried


def test_other_sizes_are_tried_where_both_take_them(kinds: dict[str, Any]) -> None:
    both = equivalent(kinds["module"], kinds["traced"], X)
    assert "random inputs 2x3x10x9" in both.tried
    assert not both.skipped
    fixed = equivalent(kinds["module"], kinds["proto"], X)
    assert "random inputs 2x3x10x9" not in fixed.tried
    assert any("b does not take them" in words and "fixes x to" in words for words in fixed.skipped)


@pytest.mark.parametrize("kind", ["module", "proto", "pt2 path"])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.wide_bn, "eps", 1e-3),
        lambda m: m.narrow_bn.bias.add_(1e-3),
        lambda m: m.last.weight[0, 0, 0, 0].add_(1e-4),
        lambda m: setattr(m.wide, "padding_mode", "replicate"),
    ],
    ids=["eps", "bias", "one weight", "border"],
)
def test_an_error_of_a_conversion_is_not_equal(change: Callable[[Block], object], kind: str, kinds: dict[str, Any]) -> None:
    wrong = changed(change)
    if wrong.wide.padding_mode == "replicate":
        wrong.wide._reversed_padding_repeated_twice = [1, 1, 1, 1]
    found = equivalent(kinds[kind], wrong, X)
    assert not found
    assert found.reason == ""
    assert found.relative > found.tolerance
    assert "not equal: more than rounding" in found.to_text()


def test_a_composition_that_pads_is_told_from_one_wide_conv() -> None:
    first, second = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
    wide = nn.Conv2d(3, 3, 5, padding=2, bias=False)
    with torch.no_grad():
        kernel = F.conv2d(first.weight.transpose(0, 1), second.weight.flip(2, 3), padding=2).transpose(0, 1)
        wide.weight.copy_(kernel)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    sequence = nn.Sequential(first, second).eval()
    torch.testing.assert_close(sequence(X[0])[inner], wide(X[0])[inner], rtol=1e-4, atol=1e-5)  # float32
    assert not equivalent(sequence, wide.eval(), X)


def test_an_error_that_the_example_size_hides_shows_on_another() -> None:
    """A fixed border of zeros is right for the sizes that it was made for."""

    class Baked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Zero in the last of nine rows, and in the ninth row only."""
            mask = (torch.arange(x.shape[2]) != 8).reshape(-1, 1)
            return x * mask

    class LastRow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Zero in the last row."""
            return x * (torch.arange(x.shape[2]) != x.shape[2] - 1).reshape(-1, 1)

    found = equivalent(LastRow().eval(), Baked().eval(), X)
    assert not found
    assert found.where == "random inputs 2x3x10x9"


@pytest.mark.parametrize(("dtype", "word"), [(torch.float64, "f64"), (torch.float16, "f16"), (torch.bfloat16, "bf16")])
def test_the_tolerance_is_that_of_the_coarsest_weights(dtype: torch.dtype, word: str) -> None:
    model, other = block(), block().to(dtype)
    if dtype == torch.float64:
        model = block().double()
    found = equivalent(model, other, X)
    assert found, found.to_text()
    assert found.dtype == "float64"
    assert BY_DTYPE[word].floor <= found.tolerance <= BY_DTYPE[word].ceiling


def test_what_is_rounding_in_float32_is_an_error_in_float64() -> None:
    def scaled(model: Block) -> Block:
        with torch.no_grad():
            model.last.weight.mul_(1 + 1e-7)
        return model

    assert equivalent(block(), scaled(block()), X)
    found = equivalent(block().double(), scaled(block().double()), X)
    assert not found
    assert found.relative == pytest.approx(1e-7, rel=0.5)


class Amplifies(nn.Module):
    """A scale whose rounding is amplified: 1 / (s x - t) near its pole."""

    def __init__(self, gap: float, shift: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((64,), 1.0 + gap))
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        """`64` to `64`."""
        return 1 / (self.scale * x.abs().clamp(1, 1) - 1 + self.shift)


def test_what_a_model_amplifies_rounding_to_is_measured() -> None:
    model, rounded = Amplifies(1e-3), Amplifies(1e-3)
    with torch.no_grad():
        rounded.scale.mul_(1 + 1e-7)  # one step of float32
    found = equivalent(model.eval(), rounded.eval(), (torch.randn(64),))
    assert found.rounding is not None
    assert BY_DTYPE["f32"].floor < found.relative < found.tolerance < BY_DTYPE["f32"].ceiling
    assert found
    assert "rounding the weights moves the outputs by" in found.to_text()


def test_where_rounding_hides_errors_it_says_that_nothing_can_be_told() -> None:
    found = equivalent(Amplifies(1e-5).eval(), Amplifies(1e-5, shift=2e-7).eval(), (torch.randn(64),))
    assert not found
    assert "cannot be told" in found.reason
    assert found.tolerance == BY_DTYPE["f32"].ceiling


def test_a_tolerance_of_the_callers_own_is_taken_as_it_is() -> None:
    other = changed(lambda m: m.last.weight.mul_(1.001))
    assert not equivalent(block(), other, X)
    found = equivalent(block(), other, X, tolerance=1e-2)
    assert found
    assert (found.tolerance, found.rounding) == (1e-2, None)


STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list in a tuple": lambda a, b: ([a], b),
    "dict": lambda a, b: {"sum": a, "double": b},
    "dict in another order": lambda a, b: {"double": b, "sum": a},
    "with none and a number": lambda a, b: (a, None, b),
}


@pytest.mark.parametrize("one", STRUCTURES)
@pytest.mark.parametrize("other", STRUCTURES)
def test_outputs_are_flattened_and_keys_pair_them(one: str, other: str) -> None:
    reordered = "dict in another order"
    found = equivalent(Returns(STRUCTURES[one]).eval(), Returns(STRUCTURES[other]).eval(), X)
    by_key = {one, other} <= {"dict", reordered}
    assert found.equal == (by_key or (one == reordered) == (other == reordered))


def test_another_number_of_outputs_is_not_equal_and_no_error() -> None:
    found = equivalent(Returns(lambda a, b: (a, b)).eval(), Returns(lambda a, b: a).eval(), X)
    assert not found
    assert found.reason == "a gives 2 outputs and b gives 1, on example inputs 2x3x9x7"
    assert (found.max_abs, found.relative, found.output) == (math.inf, math.inf, None)


def test_another_shape_is_not_equal_and_no_error() -> None:
    found = equivalent(Returns(lambda a, b: (a, b)).eval(), Returns(lambda a, b: (a, b[:1])).eval(), X)
    assert not found
    assert found.reason == "output 1 has the shape [2, 3, 9, 7] in a and [1, 3, 9, 7] in b, on example inputs 2x3x9x7"
    assert found.output == 1
    assert "differs by inf" in found.to_text()


def test_the_worst_output_is_named() -> None:
    found = equivalent(Returns(lambda a, b: (a, b)).eval(), Returns(lambda a, b: (a, b * 1.5)).eval(), X)
    assert found.output == 1
    assert found.relative == pytest.approx(0.5)


def test_outputs_without_a_finite_number_prove_nothing() -> None:
    found = equivalent(Returns(lambda a, b: a * math.nan).eval(), Returns(lambda a, b: b * math.nan).eval(), X)
    assert not found
    assert "finite" in found.reason


@pytest.mark.parametrize(
    ("spoil", "named"),
    [(lambda m: m.train(), "wide_bn"), (lambda m: m.narrow_bn.train(), "narrow_bn"), (lambda m: m.append_drop(), "drop")],
    ids=["whole", "one norm", "dropout"],
)
@pytest.mark.parametrize("first", [True, False])
def test_training_mode_is_an_error_that_says_what_to_call(
    spoil: Callable[[Any], object], named: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Block, "append_drop", lambda m: m.add_module("drop", nn.Dropout()), raising=False)
    model = block()
    spoil(model)
    pair = (model, block()) if first else (block(), model)
    with pytest.raises(UnsupportedModelError, match=rf"{named} .*training=True.*call model.eval\(\)"):
        equivalent(*pair, X)


def test_functional_dropout_of_a_module_in_training_is_an_error_too() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Noise, in training."""
            return F.dropout(x, training=self.training)

    with pytest.raises(UnsupportedModelError, match=r"Drops: training=True"):
        equivalent(Drops(), Drops().eval(), X)
    assert equivalent(Drops().eval(), Returns(lambda a, b: a - 1).eval(), X)


def test_random_ops_draw_the_same_and_leave_the_callers_generator_alone() -> None:
    noisy = Returns(lambda a, b: a + torch.rand_like(a)).eval()
    before = torch.get_rng_state()
    assert equivalent(noisy, copy.deepcopy(noisy), X)
    assert torch.equal(before, torch.get_rng_state())


class Counts(nn.Module):
    """Writes to its buffer, and to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x + 1, in place."""
        self.calls.add_(1)
        return x.add_(1)


def test_neither_model_nor_input_is_changed(kinds: dict[str, Any]) -> None:
    model, x = Counts().eval(), X[0].clone()
    assert equivalent(model, Returns(lambda a, b: a).eval(), (x,))
    assert float(model.calls) == 0
    assert torch.equal(x, X[0])
    modules = [kinds["module"], kinds["traced"]]
    states = [copy.deepcopy(m.state_dict()) for m in modules]
    proto = kinds["proto"].SerializeToString()
    assert equivalent(kinds["traced"], kinds["proto"], X)
    assert not equivalent(*modules, X, tolerance=0.0)
    assert not equivalent(kinds["module"], changed(lambda m: m.last.weight.mul_(1.01)), X)  # moves weights, of copies
    assert kinds["proto"].SerializeToString() == proto
    for module, state in zip(modules, states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
        assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}


def test_a_model_that_does_not_run_in_float64_runs_in_its_own_dtype() -> None:
    model = Float32Only(nn.Conv2d(3, 4, 3)).eval()
    found = equivalent(model, copy.deepcopy(model.body), X)
    assert found, found.to_text()
    assert found.dtype == "float32"
    assert found.runtimes == ("torch, float32", "torch, float64")
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.body.weight.mul_(1.0001)
    assert not equivalent(model, wrong, X)


def opaque_model(scale: float = 1.0) -> Any:
    """A conv, then an op that has no float64 form outside its model: random, but too small to count."""
    weight = normal(4, 3, 3, 3) * np.float32(scale)
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
        onnx.helper.make_node("RandomNormalLike", ["c"], ["r"], mean=0.0, scale=1e-30, seed=1.0),
        onnx.helper.make_node("Add", ["c", "r"], ["y"]),
    ]
    return model_of(nodes, {"x": ("n", 3, "h", "w")}, ["y"], {"w": weight})


def test_an_onnx_op_that_cannot_run_alone_is_left_to_onnx_runtime() -> None:
    found = equivalent(opaque_model(), opaque_model(1 + 1e-7), X)
    assert found, found.to_text()
    assert found.dtype == "float32"
    assert all(words.startswith("ONNX Runtime, float32 (not in float64") for words in found.runtimes)
    assert "random inputs 2x3x10x9" in found.tried
    wrong = equivalent(opaque_model(), opaque_model(1 + 1e-4), X)
    assert not wrong
    assert wrong.rounding is not None
    assert 0 < wrong.rounding < 1e-6


def test_a_graph_that_is_not_what_onnx_runtime_runs_is_not_believed(
    kinds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def misread(graph: Any, inputs: Any) -> Any:
        return {name: value * 1.01 for name, value in true(graph, inputs).items()}

    true = runs.evaluate
    monkeypatch.setattr(runs, "evaluate", misread)
    found = equivalent(kinds["module"], kinds["proto"], X)
    assert found, found.to_text()
    assert found.dtype == "float32"
    assert "the graph as read gives something else, by 9.9e-03" in found.runtimes[1]


def test_integers_stay_what_they_are() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, index: Tensor, x: Tensor) -> Tensor:
            """`N` and `N 3`."""
            return self.table(index) + x

    model = Looks().eval()
    found = equivalent(model, torch.fx.symbolic_trace(model), (torch.tensor([4, 0]), torch.randn(2, 3)))
    assert found
    assert found.tried == ("example inputs 2, 2x3", "random inputs 2, 2x3", "random inputs 3, 3x3")
    only = nn.Embedding(5, 3).eval()
    assert equivalent(only, copy.deepcopy(only), (torch.tensor([4, 0]),)).tried == ("example inputs 2",)


def test_arrays_are_taken_as_inputs(kinds: dict[str, Any]) -> None:
    assert equivalent(kinds["module"], kinds["proto"], (X[0].numpy(),))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"conv": 1}, "found a builtins.dict"),
        ("weights.safetensors", "ends in .onnx or .pt2"),
        ("nowhere.onnx", "no such file"),
        (nn.Conv2d(5, 3, 1).eval(), "does not run on inputs of shapes"),
    ],
)
def test_what_cannot_be_run_is_a_typed_error(model: object, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        equivalent(block(), model, X)


def test_onnx_inputs_that_do_not_fit_are_a_typed_error(kinds: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="takes 1 inputs"):
        equivalent(kinds["proto"], kinds["proto"], (*X, *X))


def test_json_has_every_field_and_no_infinity() -> None:
    found = json.loads(equivalent(Returns(lambda a, b: (a, b)).eval(), Returns(lambda a, b: a).eval(), X).to_json())
    assert found["equal"] is False
    assert found["relative"] is None
    assert found["tried"] == ["example inputs 2x3x9x7"]
    assert set(found) == {
        *("equal", "max_abs", "relative", "output", "where", "dtype", "runtimes", "tolerance", "rounding", "tried"),
        *("skipped", "reason"),
    }


def test_a_path_needs_no_pickle(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(block(), tmp_path / "block.pt2")
    with pytest.raises(UnsupportedModelError):
        equivalent(tmp_path / "block.pt2", block(), X)


@pytest.mark.parametrize("scripted", [lambda net: torch.jit.trace(net, X), torch.jit.script])
def test_a_scripted_model_is_compared_as_any_other(scripted: Callable[[nn.Module], Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    other = copy.deepcopy(randomise_batch_norm(net, 0).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert equivalent(net, scripted(net), X)
        other[0].weight.data[0] *= 1.01
        assert not equivalent(other, scripted(net), X)


@dataclass
class Scores:
    """What a model gives, of a class that torch knows nothing of."""

    logits: Tensor
    hidden: list[Tensor] | None = None


def test_the_fields_of_a_dataclass_are_outputs() -> None:
    given = Returns(lambda a, b: Scores(a, [b])).eval()
    assert equivalent(given, Returns(lambda a, b: {"logits": a, "hidden": [b]}).eval(), X)
    assert not equivalent(given, Returns(lambda a, b: Scores(a, [b + 1e-3])).eval(), X)
    assert "2 outputs and b gives 1" in equivalent(given, Returns(lambda a, b: Scores(a)).eval(), X).reason


def test_what_holds_no_tensor_is_said() -> None:
    nothing = Returns(lambda a, b: "text").eval()
    assert equivalent(nothing, nothing, X).reason == "neither gives a tensor or a number, so that nothing can be told"
