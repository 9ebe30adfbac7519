"""An op is what it is, not what it is called: namesakes of torch's ops are opaque under their qualified names."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.analysis import data_independent_nodes
from reparam_compiler.ir.ops import Facts
from tests.support.onnx_models import model_of

Kind = Literal["module", "export"]
HERE = __name__
X = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))


@fx.wrap
def add(x: Tensor, y: Tensor) -> Tensor:
    return x + 0.25 * y


@fx.wrap
def relu(x: Tensor) -> Tensor:
    return x.cumsum(1)


@fx.wrap
def softmax(x: Tensor, dim: int) -> Tensor:
    return x.cumsum(1)


@fx.wrap
def cat(values: list[Tensor], dim: int) -> Tensor:
    return values[0] - values[1]


@fx.wrap
def size(x: Tensor) -> Tensor:
    return x.mean()


@fx.wrap
def zeros_like(x: Tensor) -> Tensor:
    return x * 2


@fx.wrap
def rand(x: Tensor) -> Tensor:
    return x + 1


@fx.wrap
def view(x: Tensor, *shape: int) -> Tensor:
    return x.flip(1)


@torch.library.custom_op("reparam_names::add", mutates_args=())
def library_add(x: Tensor, y: Tensor) -> Tensor:
    return x + 0.25 * y


@torch.library.custom_op("reparam_names::relu", mutates_args=())
def library_relu(x: Tensor) -> Tensor:
    return x.cumsum(1).contiguous()


@torch.library.custom_op("reparam_names::view", mutates_args=())
def library_view(x: Tensor) -> Tensor:
    return x.flip(1).contiguous()


@torch.library.custom_op("reparam_names::store", mutates_args=("x",))
def library_store(x: Tensor, y: Tensor) -> None:
    x.copy_(y * 2)


@library_add.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


@library_relu.register_fake
@library_view.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Fold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class PixelShuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class ReLU(nn.ReLU):
    """A subclass of torch's that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Fold | PixelShuffle | ReLU) or super().is_leaf_module(m, module_qualified_name)


class Net(nn.Module):
    """Two convs whose sum would be fused, by a function of both, and what follows."""

    def __init__(self, middle: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.fold, self.shuffle, self.relu = Fold(), PixelShuffle(), ReLU()
        self.middle = middle
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.a(x), self.b(x)))


def given(kind: Kind, net: Net) -> Any:
    return torch.export.export(net, (X,)) if kind == "export" else fx.GraphModule(net, Leaves().trace(net))


NAMESAKES: list[tuple[str, Callable[[Any, Tensor, Tensor], Tensor]]] = [
    (f"{HERE}.add", lambda m, a, b: add(a, b)),
    (f"{HERE}.relu", lambda m, a, b: relu(a) + b),
    (f"{HERE}.softmax", lambda m, a, b: softmax(a, 2) + b),
    (f"{HERE}.cat", lambda m, a, b: cat([a, b], 1)),
    (f"{HERE}.view", lambda m, a, b: view(a, 2, 8, 8, 6) + b),
    (f"{HERE}.rand", lambda m, a, b: rand(a) + b),
    (f"{HERE}.zeros_like", lambda m, a, b: zeros_like(a) + b),
    (f"{HERE}.Fold", lambda m, a, b: m.fold(a) + b),
    (f"{HERE}.PixelShuffle", lambda m, a, b: m.shuffle(a) + b),
    (f"{HERE}.ReLU", lambda m, a, b: m.relu(a) + b),
    ("reparam_names::add", lambda m, a, b: torch.ops.reparam_names.add(a, b)),
    ("reparam_names::add", lambda m, a, b: library_add(a, b)),
    ("reparam_names::relu", lambda m, a, b: torch.ops.reparam_names.relu(a) + b),
    ("reparam_names::view", lambda m, a, b: torch.ops.reparam_names.view(a) + b),
]


@pytest.mark.parametrize(("name", "middle"), NAMESAKES)
def test_a_namesake_is_opaque_under_its_qualified_name(name: str, middle: Callable[..., Tensor]) -> None:
    net = Net(middle)
    graph = FxFrontend().read(given("module", net), (X,)).graph
    (op,) = [node.op for node in graph if isinstance(node.op, ops.Opaque) and node.op.coupling is None]
    assert (op.target, op.facts) == (name, Facts.NONE)
    fused, report = reparam_compiler.fuse(given("module", net), return_report=True)
    torch.testing.assert_close(fused(X), net(X), rtol=1e-5, atol=1e-6)
    assert not report.fusions
    assert all(name in refusal.reason for refusal in report.refusals)


@pytest.mark.parametrize(("name", "middle"), NAMESAKES)
@pytest.mark.parametrize("kind", ["module", "export"])
def test_pruning_pins_what_reads_a_namesake(kind: Kind, name: str, middle: Callable[..., Tensor]) -> None:
    if kind == "export" and "::" not in name:
        pytest.skip("torch.export looks into functions and modules")
    with pytest.raises(InfeasiblePruneError, match=rf"\({name}\) is not understood"):
        reparam_compiler.prune(given(kind, Net(middle)), (X,), ratio=0.5, round_to=1)


def test_a_namesake_of_a_size_depends_on_elements() -> None:
    graph = FxFrontend().read(given("module", Net(lambda m, a, b: a * size(a) + b)), (X,)).graph
    assert not data_independent_nodes(graph)


def test_what_a_custom_op_writes_to_is_left_alone() -> None:
    def middle(m: Any, a: Tensor, b: Tensor) -> Tensor:
        torch.ops.reparam_names.store(a, b)
        return a + b

    net = Net(middle)
    fused = reparam_compiler.fuse(given("module", net))
    torch.testing.assert_close(fused(X), net(X), rtol=1e-5, atol=1e-6)


def test_an_onnx_op_of_another_domain_is_no_op_of_onnx() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], domain="mine"),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    constants = {"w": rng.standard_normal((8, 3, 1, 1), np.float32), "v": rng.standard_normal((4, 8, 1, 1), np.float32)}
    model = model_of(nodes, {"x": (2, 3, 8, 6)}, ["y"], constants)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert OnnxFrontend().read(model).graph["b"].op == ops.Opaque("mine::Relu")
    with pytest.raises(InfeasiblePruneError, match=r"\(mine::Relu\) is not understood"):
        reparam_compiler.prune(model, ratio=0.5, round_to=1)


@fx.wrap
def whole(x: Tensor) -> Tensor:
    return x.view(x.shape)


class Whole(nn.Module):
    """A leaf that gives what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Written(nn.Module):
    """Two branches of one source, which is written to in between through what somebody else's call gave."""

    def __init__(self, alias: Callable[["Written", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.leaf = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), Whole()
        self.alias = alias
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(x)
        y = self.a(x)
        self.alias(self, x).add_(1.0)
        return y + self.b(x)


class WholeIsALeaf(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Whole) or super().is_leaf_module(m, module_qualified_name)


@pytest.mark.parametrize("alias", [lambda m, x: whole(x), lambda m, x: m.leaf(x)], ids=["function", "module"])
def test_what_a_foreign_call_gives_may_be_a_view(alias: Callable[[Any, Tensor], Tensor]) -> None:
    model = Written(alias)
    traced = fx.GraphModule(model, WholeIsALeaf().trace(model))
    fused, report = reparam_compiler.fuse(traced, return_report=True)
    assert not report.fusions
    assert torch.equal(fused(X), model(X))
