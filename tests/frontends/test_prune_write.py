"""What pruning changes comes back in native models: widths, repaired biases, and weights that had no name of their own.

The model that comes out is an ordinary one: it is copied, saved, loaded, trained, exported and pruned as any other.
"""

import copy
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

import reparam_compiler
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.pruning import pipeline as prune_plan
from tests.support.onnx_models import evaluated, exported, run
from tests.support.small_models import randomised

FLOAT32 = 1e-5  # relative, of outputs in float32 against the graph in float64
pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class ComputedWeights(nn.Module):
    """A parametrized conv, and one whose weight is computed in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, bias=False)
        parametrize.register_parametrization(self.first, "weight", Doubled())
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3))
        self.scale = nn.Parameter(torch.randn(16))
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(F.conv2d(torch.relu(self.first(x)), self.weight * 0.1))
        return self.last(self.scale.exp().reshape(1, -1, 1, 1) * inner)


@pytest.mark.parametrize("kind", ["fx", "export"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_computed_from_parameters_are_pruned_and_the_callers_stay(kind: str, calibrated: bool) -> None:
    torch.manual_seed(0)
    model, x = ComputedWeights().eval(), torch.randn(2, 3, 12, 11)
    native = torch.fx.symbolic_trace(model) if kind == "fx" else torch.export.export(model, (x,))
    before = model(x)
    pruned = reparam_compiler.prune(native, (x,), ratio=0.5, calibration=x if calibrated else None)
    found = (pruned if kind == "fx" else pruned.module())(x)
    graph = frontend_for(native).read(native, (x,)).graph
    data = [(x,)] if calibrated else None
    expected_graph = prune_plan.prune(graph, ratio=0.5, calibration=data).graph
    source = next(node.id for node in graph if isinstance(node.op, ops.Input))
    (expected,) = evaluate(expected_graph, {source: x}).values()
    assert difference(expected, found).relative <= FLOAT32
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert parametrize.is_parametrized(model.first, "weight")


def test_exported_program_keeps_an_input_that_is_named_as_a_builtin() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()  # its exported input is called `input`
    x = torch.randn(2, 3, 8, 7)
    program = torch.export.export(model, (x,))
    fused = reparam_compiler.fuse(program)
    assert fused.graph_signature.user_inputs == program.graph_signature.user_inputs
    assert difference(model(x), fused.module()(x)).relative <= FLOAT32


@pytest.mark.parametrize("trace", [lambda model: model, torch.fx.symbolic_trace])
def test_a_tensor_of_two_modules_is_cut_in_both(trace: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
    model[4].weight = model[2].weight
    pruned = reparam_compiler.prune(trace(model.eval()), (X,), ratio=0.5, round_to=1, calibration=CALIBRATION)
    assert pruned(X).shape == model(X).shape
    assert pruned.get_submodule("2").weight is pruned.get_submodule("4").weight
    assert pruned.get_submodule("4").weight.shape == (4, 4, 3, 3)


def test_module_of_an_exported_program_keeps_it_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 7)
    module = torch.export.export(model, (x,)).module()
    fused = reparam_compiler.fuse(module, (x,))
    assert difference(model(x), fused(x)).relative <= FLOAT32
    assert len(fused.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)) == 1


class Varied(nn.Module):
    """Every kind of width that a module states: channels, groups, features; one layer is frozen and one has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.hidden, self.norm, self.head = nn.Linear(12 * 63, 20), nn.BatchNorm1d(20), nn.Linear(20, 4)
        self.grouped.requires_grad_(False)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.depthwise(torch.relu(self.grouped(self.stem(x)))).chunk(2, 1)
        x = torch.relu(torch.cat([self.left(left), self.right(right)], 1))
        return self.head(torch.relu(self.norm(self.hidden(x.flatten(1)))))


X = torch.randn(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
CALIBRATION = torch.randn(64, 3, 9, 7, generator=torch.Generator().manual_seed(1))
EXACT = {"rtol": 0, "atol": 0}
TORCH = pytest.mark.parametrize(("kind", "calibrated"), [("module", False), ("module", True), ("fx", False), ("fx", True)])


def varied() -> Varied:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Varied()


@cache
def _pruned(kind: str, calibrated: bool) -> fx.GraphModule:
    model = varied() if kind == "module" else fx.symbolic_trace(varied())
    return reparam_compiler.prune(model, (X,), ratio=0.5, round_to=1, calibration=CALIBRATION if calibrated else None)


def pruned_model(kind: str, calibrated: bool) -> fx.GraphModule:
    return copy.deepcopy(_pruned(kind, calibrated))


@cache
def pruned_program() -> ExportedProgram:
    program = torch.export.export(varied(), (X,))
    return reparam_compiler.prune(program, ratio=0.5, round_to=1, calibration=CALIBRATION)


def trains(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@TORCH
def test_modules_state_the_widths_of_their_tensors(kind: str, calibrated: bool) -> None:
    model = pruned_model(kind, calibrated)
    for module in model.modules():
        match module:
            case nn.Conv2d():
                assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
                assert module.bias is None or len(module.bias) == module.out_channels
            case nn.Linear():
                assert module.weight.shape == (module.out_features, module.in_features)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                tensors = (module.weight, module.bias, module.running_mean, module.running_var)
                assert {len(tensor) for tensor in tensors} == {module.num_features}
    assert model.get_submodule("stem.0").out_channels == model.get_submodule("stem.1").num_features == 8
    assert (model.grouped.groups, model.grouped.in_channels, model.grouped.out_channels) == (4, 8, 8)
    assert (model.depthwise.groups, model.depthwise.in_channels, model.depthwise.out_channels) == (8, 8, 8)
    assert (model.left.in_channels, model.right.out_channels) == (4, 3)
    assert (model.hidden.in_features, model.hidden.out_features, model.norm.num_features) == (6 * 63, 10, 10)


@TORCH
def test_a_copy_takes_the_state_dict_of_a_file(kind: str, calibrated: bool) -> None:
    model = pruned_model(kind, calibrated)
    copied, file = copy.deepcopy(model), io.BytesIO()
    with torch.no_grad():
        for tensor in copied.state_dict().values():
            tensor.zero_()
    torch.save(model.state_dict(), file)
    file.seek(0)
    copied.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(copied(X), model(X), **EXACT)


@TORCH
def test_the_whole_model_is_pickled(kind: str, calibrated: bool) -> None:
    model, file = pruned_model(kind, calibrated), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(X), model(X), **EXACT)


@TORCH
def test_a_step_of_training_moves_what_was_trained_before_and_nothing_else(kind: str, calibrated: bool) -> None:
    model, wanted = pruned_model(kind, calibrated).train(), trains(varied())
    assert trains(model) == {name: wanted.get(name, True) for name in trains(model)}
    assert not trains(model)["grouped.weight"]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model(X).square().sum().backward()
    optimiser.step()
    moved = {name: not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()}
    moved.pop("hidden.bias")  # the norm after it takes any shift out again
    assert moved == {name: trained for name, trained in trains(model).items() if name in moved}
    assert model.eval()(X).isfinite().all()


@TORCH
def test_it_is_exported_and_pruned_again(kind: str, calibrated: bool) -> None:
    model = pruned_model(kind, calibrated)
    program = torch.export.export(model, (X,))
    assert difference(model(X), program.module()(X)).relative <= FLOAT32
    again = reparam_compiler.prune(model, (X,), ratio=0.5, round_to=1)
    assert [m.get_submodule("stem.0").out_channels for m in (again, model)] == [4, 8]


@TORCH
def test_other_batches_and_the_callers_model_are_as_before(kind: str, calibrated: bool) -> None:
    model, caller = pruned_model(kind, calibrated), varied()
    before = copy.deepcopy(caller.state_dict())
    reparam_compiler.prune(caller, (X,), ratio=0.5, round_to=1, calibration=CALIBRATION if calibrated else None)
    torch.testing.assert_close(dict(caller.state_dict()), dict(before), **EXACT)
    torch.testing.assert_close(model(X.repeat(2, 1, 1, 1)), model(X).repeat(2, 1), rtol=1e-4, atol=1e-5)  # float32


def test_a_pruned_program_is_saved_loaded_and_exported_again() -> None:
    program, file = pruned_program(), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded, module = torch.export.load(file).module(), program.module()
    torch.testing.assert_close(loaded(X), module(X), **EXACT)
    again = torch.export.export(module, (X,))
    assert difference(module(X), again.module()(X)).relative <= FLOAT32


def test_a_pruned_program_has_its_widths_in_its_types_and_trains_what_was_trained() -> None:
    program, wanted = pruned_program(), trains(varied())
    tensors = program.state_dict
    assert tensors["stem.0.weight"].shape == (8, 3, 3, 3)
    for spec in program.graph_signature.input_specs:
        if spec.target in tensors:
            node = next(node for node in program.graph.nodes if node.name == spec.arg.name)
            assert node.meta["val"].shape == tensors[spec.target].shape
    assert {name: tensors[name].requires_grad for name in wanted} == wanted


@pytest.mark.parametrize(
    ("dynamo", "dynamic"), [(False, False), (False, True), pytest.param(True, True, marks=pytest.mark.slow)]
)
def test_a_pruned_onnx_model_is_valid_and_runs(dynamo: bool, dynamic: bool, tmp_path: Path) -> None:
    model = exported(varied(), X, tmp_path, dynamo=dynamo, dynamic=dynamic)
    pruned = reparam_compiler.prune(model, ratio=0.5, round_to=1, calibration=CALIBRATION)
    onnx.checker.check_model(pruned, full_check=True)
    shapes = {tuple(tensor.dims) for tensor in pruned.graph.initializer}
    assert {(8, 3, 3, 3), (8, 2, 3, 3), (8, 1, 3, 3), (3, 4, 1, 1), (10, 378), (4, 10)} <= shapes
    groups = [a.i for node in pruned.graph.node for a in node.attribute if node.op_type == "Conv" and a.name == "group"]
    assert groups == [1, 4, 8, 1, 1]
    feeds = {pruned.graph.input[0].name: X.numpy()}
    graph = frontend_for(pruned).read(pruned).graph
    expected, found = (torch.from_numpy(values[0]) for values in (evaluated(graph, feeds), run(pruned, feeds)))
    assert difference(expected, found).relative <= FLOAT32
