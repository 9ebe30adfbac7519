"""What is given back was run as it is stored, whatever its kind and wherever it was written: a writer that is off is found."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.checking import onnx_written, written
from reparam_compiler.errors import RewriteError, UnsupportedModelError, VerificationError
from tests.support.every_kind import DATA, KINDS, X, as_onnx, exported, net, off_by_a_tenth, reading_of, same, state_of
from tests.support.small_models import Float32Only

FUNCTIONS: dict[str, dict[str, Any]] = {"fuse": {}, "prune": {"ratio": 0.5, "calibration": DATA}}


def inputs_of(kind: str) -> Any:
    return None if kind in ("program", "onnx") else (X,)


def is_stored(named: dict[str, Any]) -> bool:
    return not named.get("exact")


def is_in_place(named: dict[str, Any]) -> bool:
    return bool(named.get("inplace"))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_model_is_checked_as_it_is_stored(kind: str, inplace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = KINDS[kind](net())
    before = state_of(model)
    off_by_a_tenth(kind, monkeypatch, is_stored)
    with pytest.raises(VerificationError, match="output: the rewritten model differs by"):
        reparam_compiler.fuse(model, inputs_of(kind), inplace=inplace)
    assert same(state_of(model), before)
    reparam_compiler.fuse(model, inputs_of(kind), inplace=inplace, verify=False)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["module", "graph module", "program"])
def test_a_write_in_place_gives_what_its_copy_gave(kind: str, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    off_by_a_tenth(kind, monkeypatch, is_in_place)
    with pytest.raises(VerificationError, match="the model has been changed, load it anew"):
        getattr(reparam_compiler, function)(KINDS[kind](net()), inputs_of(kind), inplace=True, **FUNCTIONS[function])


def test_each_round_of_an_iterative_pruner_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = reparam_compiler.IterativePruner(net(), (X,), ratio=0.5, steps=2, calibration=DATA)
    rounds.step()
    first = rounds.model
    off_by_a_tenth("module", monkeypatch)
    with pytest.raises(VerificationError):
        rounds.step()
    assert rounds.model is first


class Branching(nn.Module):
    """No tracer takes it whole: its body is fused by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("inplace", [False, True])
def test_a_model_fused_in_parts_is_compared_whole_and_in_place_on_a_copy_first(
    inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = Branching().eval(), Branching().eval()(X)
    fused, report = reparam_compiler.fuse(model, (X,), inplace=inplace, return_report=True)
    assert (fused is model) == inplace
    assert report.kind == "nn.Module Branching, in parts"
    assert report.whole_model is not None
    assert 0 < report.whole_model.difference.relative < 1e-5
    torch.testing.assert_close(fused(X), expected)

    model = Branching().eval()
    before, body = state_of(model), model.body
    off_by_a_tenth("module", monkeypatch)
    with pytest.raises(VerificationError, match="output: the rewritten model differs by"):
        reparam_compiler.fuse(model, (X,), inplace=inplace)
    assert model.body is body
    assert same(state_of(model), before)
    reparam_compiler.fuse(model, (X,), inplace=inplace, verify=False)


def test_parts_that_are_off_only_in_place_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from reparam_compiler.api import fusing

    model, fuse_parts = Branching().eval(), fusing.fuse_parts

    def wrong(model: nn.Module, fuse_one: Any, *, copy: bool, whole: bool) -> Any:
        parts = fuse_parts(model, fuse_one, copy=copy, whole=whole)
        if not copy:
            parts.model.body = nn.Conv2d(3, 8, 1)
        return parts

    monkeypatch.setattr(fusing, "fuse_parts", wrong)
    with pytest.raises(VerificationError, match="the model has been changed, load it anew"):
        reparam_compiler.fuse(model, (X,), inplace=True)


class Nested(nn.Module):
    """Takes a mapping and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, given: dict[str, Tensor], *, shift: Tensor) -> Tensor:
        return self.body(given["x"]) * given["times"] + shift


pruned_without_data = pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")


def nested_program() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        return torch.export.export(Nested().eval(), ({"times": torch.tensor(3.0), "x": X},), {"shift": torch.ones(8, 1, 1)})


@pruned_without_data
@pytest.mark.parametrize("inplace", [False, True])
def test_a_pruned_program_of_nested_inputs_equals_its_graph(inplace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    program = nested_program()
    before = state_of(program)
    reparam_compiler.prune(program, ratio=0.5)
    off_by_a_tenth("program", monkeypatch)
    with pytest.raises(VerificationError):
        reparam_compiler.prune(program, ratio=0.5, inplace=inplace)
    assert same(state_of(program), before)


@pruned_without_data
def test_what_was_written_is_run_where_its_graph_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise UnsupportedModelError("an op that has no rule in float64")

    monkeypatch.setattr(written.GraphRunner, "run", refuse)
    reparam_compiler.prune(nested_program(), ratio=0.5)
    reading = reading_of("program")
    write: Any = reading.write  # type: ignore[attr-defined]

    def broken(self: Any, after: Any, **named: Any) -> Any:
        made = write(self, after, **named)
        (relu,) = made.graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
        relu.target = torch.ops.aten.t.default
        made.graph_module.recompile()
        return made

    monkeypatch.setattr(reading, "write", broken)
    with pytest.raises(RewriteError, match=r"what was written does not run: .*verify=False"):
        reparam_compiler.prune(nested_program(), ratio=0.5)


class Tied(nn.Module):
    """Which of two equal channels is the larger: what rounding decides. The second half of the channels repeats the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        with torch.no_grad():
            for norm in (self.norm.weight, self.norm.running_var):
                norm.copy_(torch.rand(8) + 0.5)
            scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
            self.conv.weight[4:] = self.conv.weight[:4] * (scale[:4] / scale[4:])[:, None, None, None]
            self.conv.bias[4:] = self.conv.bias[:4] * scale[:4] / scale[4:]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).argmax(1)


@pytest.mark.parametrize("kind", ["module", "program"])
def test_what_rounding_alone_decides_is_not_held_against_the_result(kind: str) -> None:
    model = KINDS[kind](Tied().eval())
    fused = reparam_compiler.fuse(model, inputs_of(kind))
    found, expected = (m.module() if kind == "program" else m for m in (fused, model))
    assert not torch.equal(found(X), expected(X))


def test_a_model_that_runs_in_its_own_dtype_only_is_held_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.fx.symbolic_trace(Float32Only(net()).eval())
    _, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert report.whole_model is not None
    assert "the model's own dtype" in report.whole_model.how
    reparam_compiler.prune(model, (X,), ratio=0.5, calibration=DATA)
    off_by_a_tenth("graph module", monkeypatch)
    with pytest.raises(VerificationError):
        reparam_compiler.fuse(model, (X,))
    with pytest.raises(VerificationError):
        reparam_compiler.prune(model, (X,), ratio=0.5, calibration=DATA)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_weights_of_half_precision_may_be_off_by_their_rounding(
    function: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: Callable[..., Any] = getattr(reparam_compiler, function)
    call(net().to(dtype), (X.to(dtype),), **FUNCTIONS[function])
    reading = reading_of("module")
    write: Any = reading.write  # type: ignore[attr-defined]

    def empty(self: Any, after: Any, **named: Any) -> Any:
        written = write(self, after, **named)
        with torch.no_grad():
            [p.zero_() for p in written.parameters() if is_stored(named)]
        return written

    monkeypatch.setattr(reading, "write", empty)
    with pytest.raises(VerificationError):
        call(net().to(dtype), (X.to(dtype),), **FUNCTIONS[function])


def test_a_large_onnx_model_is_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_written.onnx_io, "fits_in_memory", lambda model: False)
    model, reading, writes = as_onnx(net()), reading_of("onnx"), list[object]()
    reparam_compiler.fuse(model)
    write: Any = reading.write  # type: ignore[attr-defined]

    def second_is_empty(self: Any, after: Any, **named: Any) -> Any:
        written = write(self, after, **named)
        writes.append(written)
        if len(writes) == 2:
            for tensor in written.graph.initializer:
                tensor.raw_data = bytes(len(tensor.raw_data))
        return written

    monkeypatch.setattr(reading, "write", second_is_empty)
    with pytest.raises(RewriteError, match="written twice, and the second is not the one that was checked"):
        reparam_compiler.fuse(model)


def test_tied_channels_are_no_defect_of_an_onnx_result_either(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper

    state = {name.replace(".", "_"): t.detach().numpy() for name, t in Tied().eval().state_dict().items() if t.ndim}
    norms = ["norm_weight", "norm_bias", "norm_running_mean", "norm_running_var"]
    nodes = [
        helper.make_node("Conv", ["x", "conv_weight", "conv_bias"], ["c"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", *norms], ["n"]),
        helper.make_node("ArgMax", ["n"], ["y"], axis=1, keepdims=0),
    ]
    values = [helper.make_tensor_value_info(*value) for value in (("x", 1, (2, 3, 9, 7)), ("y", 7, (2, 9, 7)))]
    tensors = [numpy_helper.from_array(array, name) for name, array in state.items()]
    graph = helper.make_graph(nodes, "tied", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    _, report = reparam_compiler.fuse(model, return_report=True)
    assert report.whole_model is not None
    assert report.whole_model.difference.relative > 1e-3


def test_a_program_is_given_back_unrun_where_it_brings_no_inputs() -> None:
    program = exported(net())
    program.example_inputs = None
    _, report = reparam_compiler.fuse(program, return_report=True)
    assert report.whole_model is None
