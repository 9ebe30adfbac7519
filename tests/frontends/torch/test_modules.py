"""A plain module is traced only where the trace is the module; the rest is fused in parts, and says so."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.errors import ReparamError, RewriteError, VerificationError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.frontends.torch.tracing.modules import fuse_parts
from reparam_compiler.models import opening
from tests.support.small_models import EXACT, Pieces, fuse_in_float64, normal, randomised, relative_error, run


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


def test_a_model_with_a_hook_is_fused_and_keeps_it() -> None:
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
    assert type(fused.model) is Outer
    assert [f.node for f in fused.report.fusions] == ["add_1"]


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
    assert fused.reasons == ["wide (Conv2d) has a forward hook (<lambda>); 1 more for that", "x (input) is not linear"]


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
    assert report.refusals[0].reason == f"point ({__name__}.{Doubled.__qualname__}) is not linear"


def test_a_model_that_no_tracer_takes_is_fused_in_parts() -> None:
    model = Gate(Pieces(block)).double()
    x = normal(1, 4, 6, 5)
    fused, report = reparam_compiler.fuse(model, (x,), return_report=True)
    assert relative_error(run(model, x), run(fused, x)) < EXACT  # float64
    assert type(fused) is Gate
    assert fused is not model
    assert report.kind == "nn.Module Gate, in parts"
    why = "x is asked for its value, which depends on the input or is written to"
    assert report.remarks == (f"Gate cannot be traced whole ({why}); 1 of its parts were fused: inner",)
    assert [f.node for f in report.fusions] == ["inner.add_1"]
    assert report.whole_model is not None
    assert report.whole_model.difference.relative < EXACT  # float64
    assert isinstance(model.inner, Pieces)


def test_a_model_with_control_flow_over_shapes_is_exported_where_there_are_inputs() -> None:
    class Shapes(Pieces):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[2] > 3 else x

    model = Shapes(block)
    assert opening.open(model).trace is None
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module", shapes=True)
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1
    assert not any(part.training for part in reparam_compiler.fuse(model.eval(), (normal(1, 4, 6, 5).float(),)).modules())


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


class RepConv(nn.Module):
    """As PP-YOLOE has it: a 1x1 branch with a learned scalar, which a plain tracer trips over."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.alpha = nn.Parameter(torch.ones(1))
        self.stride = 2

    def forward(self, x: Tensor) -> Tensor:
        return (
            torch.relu(self.conv1(x) + self.alpha * self.conv2(x)) if self.alpha else torch.relu(self.conv1(x) + self.conv2(x))
        )


class Backbone(nn.Module):
    """Blocks of RepVGG, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.stages = nn.ModuleList(nn.Sequential(*(Pieces(block) for _ in range(2))) for _ in range(3))

    @property
    def depth(self) -> int:
        return len(self.stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [x := stage(x) for stage in self.stages]


class Detector(nn.Module):
    """Control flow over data round a backbone, a neck and heads that are shared; gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = nn.ModuleDict({"0": RepConv(4), "1": RepConv(4)})
        self.again = self.neck["1"]
        self.heads = nn.ModuleList([nn.Conv2d(4, 2, 1)])
        self.names = ["a", "b"]

    def forward(self, images: Tensor) -> dict[str, Any]:
        features = self.backbone(images)
        boxes = [self.heads[0](self.neck[str(i % 2)](f)) * self.neck["0"].stride for i, f in enumerate(features)]
        boxes.append(self.again(features[-1]))
        kept = [b for b in boxes if b.mean() > 1e9] or boxes
        return {"boxes": kept, "count": torch.tensor(float(len(kept))), "depth": features[0].new_tensor(self.backbone.depth)}


def detector() -> nn.Module:
    model = randomised(Detector())
    with torch.no_grad():
        model.neck["0"].alpha.fill_(0.75)
        model.neck["1"].alpha.fill_(0.0)
    return model


def norms_left(model: nn.Module) -> int:
    """The norms that stand anywhere in a model."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_every_block_of_a_detector_is_fused() -> None:
    fused = fuse_in_float64(detector(), normal(2, 3, 26, 22), kind="module", shapes=True)
    assert fused.error < EXACT
    assert type(fused.model) is Detector
    assert sum("add" in f.node for f in fused.report.fusions) == 6 + 2
    assert fused.report.remarks[0].startswith("Detector cannot be traced whole")
    assert [type(child).__name__ for child in fused.model.neck.values()] == ["RepConv", "RepConv"]
    assert fused.model.again is fused.model.neck["1"]
    assert fused.model.backbone.depth == 3
    assert norms_left(fused.model) == 0
    assert fused.report.whole_model is not None


def test_the_callers_detector_stays_as_it_was() -> None:
    model = detector()
    modules, state = dict(model.named_modules()), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = [tensor._version for tensor in (*model.parameters(), *model.buffers())]
    reparam_compiler.fuse(model, (torch.randn(1, 3, 26, 22),))
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert [tensor._version for tensor in (*model.parameters(), *model.buffers())] == versions


def test_a_scalar_that_decides_is_frozen_and_its_block_traced_whole() -> None:
    model = randomised(RepConv(4))
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert isinstance(fused.model, fx.GraphModule)
    assert len(fused.report.fusions) == 1


def test_what_a_parent_reads_of_a_part_is_still_there() -> None:
    class Reads(Gate):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.inner.stride

    model = randomised(Reads(RepConv(4)))
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert isinstance(fused.model.inner, fx.GraphModule)
    assert copy.deepcopy(fused.model).inner.stride == 2


def test_a_part_whose_layers_the_parent_reads_is_entered_instead() -> None:
    class Reads(Gate):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).to(self.inner.conv1[0].weight.dtype)

    model = randomised(Reads(RepConv(4)))
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert isinstance(fused.model.inner, RepConv)


def test_a_sequence_that_is_only_called_is_fused_whole() -> None:
    model = randomised(Gate(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())))
    fused = fuse_in_float64(model, normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert norms_left(fused.model) == 0


@pytest.mark.parametrize(
    ("error", "fusions"), [(VerificationError("add_1", 1.0, 0.1), ["1"]), (RewriteError("no"), ["0.0", "1"])]
)
def test_a_part_that_fails_stays_and_the_rest_is_fused(error: ReparamError, fusions: list[str]) -> None:
    def fuse_one(part: fx.GraphModule) -> tuple[fx.GraphModule, Any]:
        if len(list(part.children())) == 1:  # the first of the two, which holds a block
            raise error
        return reparam_compiler.fuse(part, return_report=True)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("0", Pieces(block))

        def forward(self, x: Tensor) -> Tensor:
            return self.get_submodule("0")(x)

    model = nn.Sequential(Holder(), Pieces(block))
    parts = fuse_parts(model, fuse_one, copy=True)
    assert list(parts.reports) == fusions
    assert dict(parts.kept) == {"0": str(error)}
    x = normal(1, 4, 6, 5)
    assert relative_error(run(model.double(), x), run(parts.model.double(), x)) < 1e-6  # weights rounded to float32


def test_a_part_that_fails_is_named_in_the_remarks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise RewriteError("as the test wants it")

    monkeypatch.setattr(FxFrontend, "read", refuse)
    _, report = reparam_compiler.fuse(Gate(Pieces(block)), return_report=True)
    assert report.remarks[1:] == ("inner was not fused as a whole: as the test wants it",)
    assert not report.fusions


def test_a_model_of_which_nothing_can_be_traced_comes_back() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    model, x = Untraceable().double().eval(), normal(1, 4, 6, 5)
    for inputs in (None, (x,)):
        result, report = reparam_compiler.fuse(model, inputs, return_report=True)
        assert type(result) is Untraceable
        assert result is not model
        assert torch.equal(run(model, x), run(result, x))
        why = "x is asked for its value, which depends on the input or is written to"
        assert report.remarks == (f"Untraceable cannot be traced whole ({why}); 0 of its parts were fused: none",)
