"""What a caller registers: rules of linear ops and of couplings, by qualified names, with the arguments of the call."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.core.kernel import ConvKernel, NotFusable, diagonal
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node
from reparam_compiler.passes.fusion import registry
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.pruning.coupling.registry import COUPLING_RULES
from reparam_compiler.passes.pruning.criteria.base import CRITERIA, Scores, Scoring

pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
X = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("reparam_registered::scale", mutates_args=())
def library_scale(x: Tensor, factor: float, power: int = 1) -> Tensor:
    return x * factor**power


@library_scale.register_fake
def _(x: Tensor, factor: float, power: int = 1) -> Tensor:
    return torch.empty_like(x)


@torch.fx.wrap
def scaled(x: Tensor, factor: float) -> Tensor:
    return x * factor


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Scale) or super().is_leaf_module(m, module_qualified_name)


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(library_scale(self.a(x), 0.5, power=2) + scaled(self.b(x), 0.25)))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    before = dict(COUPLING_RULES)
    yield
    COUPLING_RULES.clear()
    COUPLING_RULES.update(before)
    CRITERIA.pop("later ones", None)


def register_scales() -> None:
    @reparam_compiler.register_linear("reparam_registered::scale")
    def scale(node: Node, reads: SourceLayout) -> ConvKernel:
        assert isinstance(node.op, ops.Opaque)
        given = node.op.arguments
        factor = float(str(given["factor"])) ** int(str(given.get("power", 1)))
        return diagonal(np.full(reads.channels, factor), np.zeros(reads.channels), reads.rank)

    @reparam_compiler.register_linear(f"{__name__}.scaled")
    def scaled_function(node: Node, reads: SourceLayout) -> ConvKernel:
        assert isinstance(node.op, ops.Opaque)
        factor = float(str(node.op.arguments["factor"]))
        return diagonal(np.full(reads.channels, factor), np.zeros(reads.channels), reads.rank)


@pytest.mark.parametrize("kind", ["module", "export"])
def test_a_rule_sees_the_arguments_of_a_call(kind: str) -> None:
    model = Summed()
    if kind == "export":
        reparam_compiler.register_linear("reparam_registered::scale")(_quarter)
        program, report = reparam_compiler.fuse(torch.export.export(model, (X,)), return_report=True)
        fused: nn.Module = program.module()
    else:
        register_scales()
        fused, report = reparam_compiler.fuse(model, (X,), return_report=True)
    assert len(report.fusions) == 1
    torch.testing.assert_close(fused(X), model(X), rtol=1e-5, atol=1e-6)


def test_a_rule_of_a_leaf_module_sees_the_numbers_that_it_holds() -> None:
    class Held(Summed):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.scale(self.a(x)) + self.b(x)))

    model = Held()
    model.scale = Scale(0.5).eval()

    @reparam_compiler.register_linear(f"{__name__}.Scale")
    def scale(node: Node, reads: SourceLayout) -> ConvKernel:
        assert isinstance(node.op, ops.Opaque)
        assert dict(node.op.arguments) == {"factor": 0.5}
        return diagonal(np.full(reads.channels, 0.5), np.zeros(reads.channels), reads.rank)

    fused, report = reparam_compiler.fuse(fx.GraphModule(model, Leaves().trace(model)), (X,), return_report=True)
    assert len(report.fusions) == 1
    torch.testing.assert_close(fused(X), model(X), rtol=1e-5, atol=1e-6)


def _quarter(node: Node, reads: SourceLayout) -> ConvKernel:
    assert isinstance(node.op, ops.Opaque)
    if dict(node.op.arguments) != {"factor": 0.5, "power": 2}:
        raise NotFusable(f"{node.id}: another factor")
    return diagonal(np.full(reads.channels, 0.25), np.zeros(reads.channels), reads.rank)


@pytest.mark.parametrize("kind", ["module", "export"])
def test_a_registered_coupling_lets_channels_go(kind: str) -> None:
    model = Summed()
    names = ["reparam_registered::scale", f"{__name__}.scaled"]
    given = torch.export.export(model, (X,)) if kind == "export" else model
    with pytest.raises(InfeasiblePruneError, match=r"reparam_registered::scale\) is not understood"):
        reparam_compiler.prune(given, (X,), ratio=0.5, round_to=1)
    seen: list[object] = []
    for name in names:

        @reparam_compiler.register_coupling(name)
        def elementwise(node: Node) -> ops.Op | None:
            assert isinstance(node.op, ops.Opaque)
            seen.append(node.op.arguments.get("factor"))
            return None if node.type is None else ops.Slicewise(tuple(range(len(node.type.shape))))

    pruned, report = reparam_compiler.prune(given, (X,), ratio=0.5, round_to=1, return_report=True)
    assert (8, 4) in [(family.before, family.after) for family in report.plan.families]
    assert 0.5 in seen
    run = pruned.module() if kind == "export" else pruned
    assert run(X).shape == (2, 4, 8, 6)


def test_a_coupling_that_is_none_leaves_the_op_as_it_is() -> None:
    reparam_compiler.register_coupling("reparam_registered::scale")(lambda node: None)
    with pytest.raises(InfeasiblePruneError, match=r"reparam_registered::scale\) is not understood"):
        reparam_compiler.prune(Summed(), (X,), ratio=0.5, round_to=1)


def test_registering_twice_or_what_nothing_is_called_raises() -> None:
    register_scales()
    with pytest.raises(ValueError, match="scale has a rule already; pass override=True"):
        reparam_compiler.register_linear("reparam_registered::scale")(_quarter)
    reparam_compiler.register_linear("reparam_registered::scale", override=True)(_quarter)
    reparam_compiler.register_coupling("mine::scale")(lambda node: None)
    with pytest.raises(ValueError, match="mine::scale has a coupling rule already; pass override=True"):
        reparam_compiler.register_coupling("mine::scale")(lambda node: None)
    with pytest.raises(ValueError, match="my_scale is no op of torch's, ONNX's or ours"):
        reparam_compiler.register_linear("my_scale")
    with pytest.raises(ValueError, match="my_scale is no op of torch's, ONNX's or ours"):
        reparam_compiler.register_coupling("my_scale")


def test_a_registered_criterion_ranks_the_channels() -> None:
    @reparam_compiler.register_criterion("later ones")
    def later_ones(scoring: Scoring) -> Scores:
        return np.arange(scoring.groups.count, dtype=np.float64)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    pruned = reparam_compiler.prune(model, (X,), ratio=0.5, round_to=1, importance="later ones")
    assert torch.equal(pruned.state_dict()["0.weight"], model.state_dict()["0.weight"][4:])
    with pytest.raises(ValueError, match="later ones is registered"):
        reparam_compiler.register_criterion("later ones")(later_ones)
