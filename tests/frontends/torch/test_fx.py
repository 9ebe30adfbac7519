"""How a graph module is written: which names new modules take, what stays, and what asymmetric padding becomes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.frontends.torch.padded_conv import Pad, PaddedConv
from reparam_compiler.ir.graph import TensorType
from tests.support.branch_blocks import block
from tests.support.small_models import EXACT, Pieces, fuse_in_float64, normal, randomised, relative_error, run


def state(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_a_new_conv_is_named_after_what_it_replaces() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.Sequential(*(nn.Sequential(block("repvgg")[0]) for _ in range(2)))

        def forward(self, x: Tensor) -> Tensor:
            return self.stages(x)

    fused = reparam_compiler.fuse(fx.symbolic_trace(Net()))
    assert list(state(fused)) == [f"stages.{i}.0.branches.fused.{name}" for i in range(2) for name in ("weight", "bias")]
    assert [name for name, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)] == []


@pytest.mark.parametrize("wiring", [lambda m, x: m.wide(x) * 2, lambda m, x: m.point(x) / 3 + 1])
def test_a_single_conv_with_a_factor_leaves_nothing_of_the_old_one(wiring: object) -> None:
    fused = fuse_in_float64(Pieces(wiring), normal(1, 4, 5, 6), shapes=True)  # type: ignore[arg-type]
    assert fused.error < EXACT
    assert set(state(fused.model)) == {"fused.weight", "fused.bias"}


def test_a_new_name_is_checked_against_all_that_exist() -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        return torch.relu(m.norm(m.wide(x))) + m.fused(x) + m.fused_1

    model = Pieces(forward)
    model.fused = nn.ConvTranspose2d(4, 4, 1)
    model.fused_1 = nn.Parameter(torch.randn(4, 1, 1))
    fused = fuse_in_float64(model, normal(1, 4, 5, 6))
    assert fused.error < EXACT
    assert {"fused.weight", "fused_1", "fused_2.weight"} <= set(state(fused.model))


def test_a_model_of_functions_gets_a_module() -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(4, 4, n, n)) for n in (3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(F.conv2d(x, self.a, padding=1) + F.conv2d(x, self.b))

    fused = fuse_in_float64(Functions(), normal(1, 4, 5, 6))
    assert fused.error < EXACT
    assert state(fused.model) == {"fused.weight": (4, 4, 3, 3)}


def test_no_bias_is_made_where_none_was() -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        return torch.relu(m.wide(x) + m.point(x) + x)

    model = Pieces(forward)
    model.wide.bias = model.point.bias = None
    fused = fuse_in_float64(model, normal(1, 4, 5, 6))
    assert set(state(fused.model)) == {"fused.weight"}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
def test_uneven_padding_is_a_pad_before_the_conv(mode: str) -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        return torch.relu(m.norm(m.wide(x)))

    model = Pieces(forward)
    model.wide = nn.Conv2d(4, 4, (2, 4), padding="same", padding_mode=mode)
    fused = fuse_in_float64(model, normal(1, 4, 7, 6))
    assert fused.error < EXACT
    (padded,) = [m for m in fused.model.modules() if isinstance(m, PaddedConv)]
    assert isinstance(padded[0], Pad)
    assert padded[0].padding == ((0, 1), (1, 2))
    assert repr(padded[0]) == f"Pad(((0, 1), (1, 2)), mode='{mode}')"
    assert isinstance(padded[1], nn.Conv2d)


def test_a_conv_of_uneven_padding_is_read_as_one_and_pruned_like_one() -> None:
    model = nn.Sequential(nn.ZeroPad2d((2, 0, 1, 1)), nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    x = torch.randn(1, 3, 7, 6)
    fused = reparam_compiler.fuse(fx.symbolic_trace(model.eval()), (x,), policy="always")
    again, report = reparam_compiler.fuse(fused, (x,), return_report=True)
    assert not report.fusions
    assert report.before.convs == 2
    with pytest.warns(reparam_compiler.UnrepairedPruneWarning):
        pruned = reparam_compiler.prune(again, (x,), ratio=0.5)
    (padded,) = [m for m in pruned.modules() if isinstance(m, PaddedConv)]
    assert (padded[1].out_channels, padded[1].weight.shape) == (8, (8, 3, 3, 3))
    assert pruned(x).shape == (1, 4, 7, 6)


def test_a_crop_after_a_conv_is_negative_padding() -> None:
    fused = fuse_in_float64(Pieces(lambda m, x: F.pad(m.norm(m.wide(x)), (-2, 0, 0, -1))), normal(1, 4, 7, 6), shapes=True)
    assert fused.error < EXACT
    (padded,) = [m for m in fused.model.modules() if isinstance(m, PaddedConv)]
    assert padded[0].padding == ((1, 0), (-1, 1))


def test_a_padding_mode_becomes_the_convs_own() -> None:
    model = Pieces(lambda m, x: torch.relu(m.wide(x) + m.point(x) + m.norm(x)))
    model.wide = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    fused = fuse_in_float64(model, normal(1, 4, 7, 6))
    assert fused.error < EXACT
    (conv,) = [m for m in fused.model.modules() if isinstance(m, nn.Conv2d)]
    assert (conv.padding_mode, conv.padding) == ("circular", (1, 1))


def test_shapes_that_the_nodes_carry_are_used_and_kept() -> None:
    model, x = block("repvgg")
    traced = fx.symbolic_trace(model)
    ShapeProp(traced).propagate(x)
    fused, report = reparam_compiler.fuse(traced, return_report=True)
    assert report.fusions[0].shape == "f64 2 8 9 7"
    (call,) = [node for node in fused.graph.nodes if "fused" in str(node.target)]
    assert call.meta["tensor_meta"].shape == (2, 8, 9, 7)


def test_reading_with_example_inputs_computes_nothing_and_touches_no_buffer() -> None:
    model = Pieces(lambda m, x: m.norm(m.wide(x))).train()
    before = model.norm.running_mean.clone()
    reading = FxFrontend().read(fx.symbolic_trace(model), (torch.randn(2, 4, 5, 6),))
    assert torch.equal(model.norm.running_mean, before)
    assert reading.graph["norm"].type is not None


def test_a_meta_model_is_fused_for_its_costs() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    graph = FxFrontend().read(fx.symbolic_trace(model), (torch.empty(1, 3, 8, 9, device="meta"),)).graph
    assert graph["_0"].type is not None
    assert graph["_0"].type.shape == (1, 4, 8, 9)


def test_a_weight_that_another_op_reads_stays_whole() -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        return torch.relu(m.norm(m.wide(x))) * torch.cos(x * m.wide.weight.mean()) + torch.sin(m.norm.running_var.sum() * x)

    model = Pieces(forward)
    fused = fuse_in_float64(model, normal(1, 4, 5, 6))
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1
    assert all(0 not in shape for shape in state(fused.model).values())


@pytest.mark.parametrize("inplace", [True, False])
def test_modules_that_nothing_calls_any_more_are_removed_with_what_held_them(inplace: bool) -> None:
    model, x = block("nested")
    expected = run(model, x)
    fused = reparam_compiler.fuse(fx.symbolic_trace(model), inplace=inplace)
    assert relative_error(expected, run(fused, x)) < EXACT
    assert [name for name, _ in fused.named_modules() if name] == ["fused"]


def test_the_training_flag_of_the_model_is_kept() -> None:
    for training in (True, False):
        traced = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)).train(training))
        assert reparam_compiler.fuse(traced).training == training


def test_a_device_is_named_where_the_model_does_not_run_on_the_inputs() -> None:
    with pytest.raises(UnsupportedModelError, match=r"does not run on the example inputs \['int'\]"):
        FxFrontend().read(fx.symbolic_trace(randomised(nn.Sequential(nn.Conv2d(3, 3, 1)))), (3,))


class _Guarded(nn.Module):
    """A block whose layers check the shape of what they get, as timm's norms do."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.wide(x)
        torch._assert(wide.ndim == 4, f"expected 4 axes, got {wide.ndim}")
        return wide + self.point(x)


def test_a_check_of_a_shape_goes_with_the_value_that_it_looks_at() -> None:
    fused = fuse_in_float64(_Guarded(), normal(2, 4, 9, 7))
    assert fused.error < EXACT
    assert [node.op for node in fused.model.graph.nodes] == ["placeholder", "call_module", "output"]


class _Counted(nn.Module):
    """Keeps what it saw last, and a tensor that it had none of before."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x * 2


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm:FutureWarning")
def test_reading_with_example_inputs_leaves_what_hooks_and_modules_keep() -> None:
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Conv2d(3, 4, 1)), nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)), _Counted()
    ).eval()

    class Leaf(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, _Counted) or super().is_leaf_module(m, module_qualified_name)

    traced = fx.GraphModule(model, Leaf().trace(model))
    weights = [module.weight for module in list(traced.children())[:2]]
    FxFrontend().read(traced, (normal(1, 3, 6, 5).float(),))
    assert all(module.weight is weight for module, weight in zip(traced.children(), weights, strict=False))
    assert "seen" not in vars(model[2])


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, torch.jit.ScriptModule) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_leaf_is_read_with_example_inputs_and_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.scripted = torch.jit.script(nn.Sequential(nn.Tanh(), nn.ReLU()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scripted(self.left(x) + self.right(x))

    model, x = Net().eval(), normal(1, 4, 6, 5).float()
    traced = fx.GraphModule(model, _Leaves().trace(model))
    reading = FxFrontend().read(traced, (x,))
    assert [(node.id, node.type) for node in reading.graph][-1] == ("scripted", TensorType("f32", (1, 4, 6, 5)))
    fused = reparam_compiler.fuse(traced, (x,))
    torch.testing.assert_close(fused(x), model(x))
    assert [node.name for node in fused.graph.nodes][1:] == ["fused", "scripted", "output"]


def test_sizes_that_depend_on_values_are_left_open_and_the_rest_is_known() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return y[y > 0].exp()

    graph = FxFrontend().read(fx.symbolic_trace(Masked().eval()), (torch.zeros(1, 3, 5, 6),)).graph
    assert graph["norm"].type is not None
    assert graph["norm"].type.shape == (1, 4, 3, 4)
    assert graph[graph.outputs[0]].type is None
