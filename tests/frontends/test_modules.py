"""A plain module is traced only where the trace is the module; the rest is fused in parts, and says so."""

from typing import Any

import pytest
import torch
from small_models import EXACT, Pieces, fuse_in_float64, normal, randomised, relative_error, run
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.frontends.modules import fuse_parts, traced


def block(m: Pieces, x: Tensor) -> Tensor:
    return torch.relu(m.wide(x) + m.point(x) + m.norm(x))


class Gate(nn.Module):
    """Control flow over data, which no tracer takes, round a plain block."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 1e9 else self.inner(x) + 1


class Flips(Pieces):
    """Flips where it is asked to; symbolic tracing takes a Proxy for the question's answer."""

    def __init__(self) -> None:
        super().__init__(block)

    def forward(self, x: Tensor, flip: Tensor | None = None, *, shift: Tensor | None = None) -> Tensor:
        if flip is not None:
            x = x.flip(3)
        if shift is not None:
            x = x + shift
        return super().forward(x)


class AsksForTensors(Pieces):
    """A Proxy is no Tensor, so a symbolic trace goes the other way."""

    def __init__(self) -> None:
        super().__init__(block)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if isinstance(x, Tensor) else -x)


@pytest.mark.parametrize("shapes", [False, True])
def test_an_argument_that_is_none_by_default_is_not_there(shapes: bool) -> None:
    fused = fuse_in_float64(Flips(), normal(1, 4, 6, 5), kind="module", shapes=shapes)
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1


def test_an_argument_fixed_to_none_refuses_another_value() -> None:
    fused = reparam_compiler.fuse(Flips())
    x = torch.randn(1, 4, 6, 5)
    with pytest.raises(AssertionError, match="flip has been specialized to have value None"):
        fused(x, x)


def test_an_argument_that_is_none_by_default_is_traced_where_example_inputs_give_it() -> None:
    model, x = Flips().double(), normal(1, 4, 6, 5)
    fused = reparam_compiler.fuse(model, (x, x))
    assert relative_error(run(model, x, x), run(fused, x, x)) < EXACT  # float64


def test_a_trace_that_computes_something_else_gives_way_to_export() -> None:
    fused = fuse_in_float64(AsksForTensors(), normal(1, 4, 6, 5), kind="module", shapes=True)
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1


def test_hooks_of_the_model_stay() -> None:
    model = Gate(Pieces(block))
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.inner.register_forward_hook(lambda module, args, output: output * 3)
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert not fused.report.fusions


def test_a_hook_of_the_model_leaves_its_children_to_be_fused() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Pieces(block)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Outer()
    model.register_forward_hook(lambda module, args, output: output * 3)
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert [f.node for f in fused.report.fusions] == ["inner.add_1"]


def test_a_forward_of_the_instance_is_kept() -> None:
    model = Pieces(block).double()
    model.forward = lambda x: x * 5  # type: ignore[method-assign]
    x = normal(1, 4, 6, 5)
    assert torch.equal(reparam_compiler.fuse(model)(x), x * 5)


def test_a_hook_on_a_conv_leaves_it_alone() -> None:
    model = Pieces(block)
    model.wide.register_forward_hook(lambda module, args, output: output * 3)
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="fx")
    assert fused.error < EXACT
    assert fused.reasons == [*["wide (Conv2d) is not linear"] * 2, "x (input) is not linear"]


def test_a_subclass_with_another_forward_is_left_alone() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = Pieces(block)
    model.point = Doubled(4, 4, 1)

    class Leaves(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, nn.Conv2d | nn.BatchNorm2d)

    model = model.double()
    given = fx.GraphModule(model, Leaves().trace(model))
    fused, report = reparam_compiler.fuse(given, return_report=True)
    x = normal(1, 4, 6, 5)
    assert relative_error(run(model, x), run(fused, x)) < EXACT  # float64
    assert report.refusals[0].reason == "point (Doubled) is not linear"


def test_a_model_that_no_tracer_takes_is_fused_in_parts() -> None:
    model = Gate(Pieces(block)).double()
    x = normal(1, 4, 6, 5)
    fused, report = reparam_compiler.fuse(model, (x,), return_report=True)
    assert relative_error(run(model, x), run(fused, x)) < EXACT  # float64
    assert type(fused) is Gate
    assert fused is not model
    assert report.kind == "nn.Module Gate, in parts"
    assert report.remarks == ("Gate cannot be traced whole; 1 of its parts were fused: inner",)
    assert [f.node for f in report.fusions] == ["inner.add_1"]
    assert report.whole_model is not None
    assert report.whole_model.difference.relative < EXACT  # float64
    assert isinstance(model.inner, Pieces)


def test_a_model_with_control_flow_over_shapes_is_exported_where_there_are_inputs() -> None:
    class Shapes(Pieces):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[2] > 3 else x

    model = Shapes(block)
    assert traced(model, None, copy=True) is None
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module", shapes=True)
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1


def test_a_child_used_in_two_places_is_fused_once_and_stays_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = Pieces(block)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 1e9 else self.b(self.a(x))

    fused = fuse_in_float64(Twice(), normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1


def test_a_part_that_may_take_none_is_entered_instead() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Flips()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x, flip=x) if x.sum() < 1e9 else self.part(x)

    assert fuse_in_float64(Outer(), normal(1, 4, 6, 5), kind="module").error < EXACT


def test_containers_that_a_parent_may_index_stay_containers() -> None:
    class Indexes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(Pieces(block) for _ in range(2)))

        def forward(self, x: Tensor) -> Tensor:
            for index in range(len(self.blocks)):
                x = self.blocks[index](x) if x.sum() < 1e9 else x
            return x

    model = randomised(Indexes())
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert isinstance(fused.model.blocks, nn.Sequential)
    assert [f.node for f in fused.report.fusions] == ["blocks.0.add_1", "blocks.1.add_1"]


def test_fuse_parts_gives_the_reports_by_path() -> None:
    def fuse_one(part: fx.GraphModule) -> tuple[fx.GraphModule, Any]:
        return reparam_compiler.fuse(part, return_report=True)

    model = Gate(nn.Sequential(Pieces(block), nn.ReLU()))
    parts = fuse_parts(model, fuse_one, copy=False)
    assert parts.model is model
    assert list(parts.reports) == ["inner"]
    assert not parts.kept
