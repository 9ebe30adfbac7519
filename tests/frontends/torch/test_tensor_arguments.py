"""Every place where a call has a tensor: a parameter that is cut is written there, whoever else reads it and whatever it is."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError
from tests.support.small_models import normal, randomised
from tests.support.spelled import Spelling, spelled, weight, widths_after_pruning

pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
NORM = {"w": weight(16), "b": weight(16), "m": lambda: torch.rand(16) + 0.5, "v": lambda: torch.rand(16) + 0.5}
TOKENS = {"w": weight(2, 16, 16)}


def tokens(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


def rows(y: Tensor) -> Tensor:
    return (y.mean((1, 2, 3)) > 0).long()


EVERYWHERE: list[Spelling] = [
    spelled(lambda n, y: F.batch_norm(y, 2 * n.m, n.v.abs(), n.w.abs(), 2 * n.b), **NORM),
    spelled(lambda n, y: F.batch_norm(y, bias=n.b.exp(), running_var=n.v.abs(), running_mean=n.m), **NORM),
    spelled(lambda n, y: torch.batch_norm(y, n.w.abs(), 2 * n.b, 2 * n.m, n.v.abs(), False, 0.1, 1e-5, False), **NORM),
    spelled(lambda n, y: F.layer_norm(y.mean((2, 3)), (16,), n.w.abs(), 2 * n.b), **NORM),
    spelled(lambda n, y: F.group_norm(y, 16, n.w.abs(), 2 * n.b), **NORM),
    spelled(lambda n, y: F.instance_norm(y, None, None, n.w.abs(), 2 * n.b), **NORM),
    spelled(lambda n, y: y.masked_fill(n.w > 0.5, 0.0), w=weight(1, 16, 1, 1)),
    spelled(lambda n, y: torch.where(n.w > 0.5, y, -y), w=weight(1, 16, 1, 1)),
    spelled(lambda n, y: torch.einsum("nchw,cd->ndhw", y, 2 * n.w), w=weight(16, 6)),
    spelled(lambda n, y: (2 * n.w) @ y.flatten(2), w=weight(2, 16, 16)),
    spelled(lambda n, y: torch.bmm(mat2=2 * n.w, input=tokens(y)), w=weight(2, 16, 6)),
    spelled(lambda n, y: F.scaled_dot_product_attention(value=tokens(y), key=2 * n.w, query=tokens(y)), **TOKENS),
    spelled(lambda n, y: F.prelu(y - 1, n.w.abs()), w=weight(16)),
    spelled(lambda n, y: F.embedding(rows(y), n.w.exp()) + y.mean((2, 3)), w=weight(2, 16)),
    spelled(lambda n, y: torch.embedding(n.w.exp(), rows(y)) + y.mean((2, 3)), w=weight(2, 16)),
]


@pytest.mark.parametrize("kind", ["fx", "export", "decomposed"])
def test_a_computed_parameter_is_exchanged_in_each_place(kind: str, tmp_path: Path) -> None:
    chosen = [
        case for case in EVERYWHERE if kind != "decomposed" or case not in EVERYWHERE[4:6]
    ]  # native_group_norm has no row
    widths = widths_after_pruning(chosen, kind, tmp_path)
    attention = chosen.index(EVERYWHERE[11])
    assert {width for index, width in enumerate(widths) if index != attention} == {8}


class Two(nn.Module):
    def __init__(self, body: Callable[["Two", Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.z, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.w, self.body = nn.Parameter(torch.randn(1, 8, 1, 1)), body
        self.register_buffer("anchor", torch.randn(1, 3, 2, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.body(self, x)


ALSO_WHOLE: dict[str, Callable[[Two, Tensor], tuple[Tensor, ...]]] = {
    "a sum": lambda n, x: (n.b(n.a(x) * n.w), x * n.w.sum()),
    "a norm of a module's weight": lambda n, x: (n.b(n.a(x)), x * n.a.weight.norm() + n.a.bias.sum()),
    "another exponential": lambda n, x: (n.b(n.a(x) * n.w), n.c(n.z(x) * n.w.exp())),
    "a module that a constant goes through": lambda n, x: (n.b(n.a(x)), x * n.a(n.anchor).sum()),
}


@pytest.mark.parametrize("kind", ["fx", "export"])
@pytest.mark.parametrize("name", ALSO_WHOLE)
def test_a_cut_tensor_stays_whole_for_constant_expressions(name: str, kind: str) -> None:
    model, x = Two(ALSO_WHOLE[name]).double().eval(), normal(2, 3, 4, 5)
    before = torch.export.export(model, (x,)) if kind == "export" else fx.symbolic_trace(copy.deepcopy(model))
    written = reparam_compiler.prune(before, (x,), ratio=0.5, round_to=1)  # which compares it with its masked reference
    if name != "another exponential":
        torch.testing.assert_close((written.module() if kind == "export" else written)(x)[1], model(x)[1])
    state = written.state_dict if kind == "export" else written.state_dict()
    assert state["a.weight"].shape[0] == 4
    assert ("w_whole" in state) == (name == "a sum")


def test_a_mask_of_bool_is_a_buffer() -> None:
    model = Two(lambda n, x: (n.b(n.a(x).masked_fill(n.w > 0.5, 0.0)),)).double().eval()
    x = normal(2, 3, 4, 5)
    module = reparam_compiler.prune(fx.symbolic_trace(copy.deepcopy(model)), (x,), ratio=0.5, round_to=1)
    program = reparam_compiler.prune(torch.export.export(model, (x,)), ratio=0.5, round_to=1)
    for buffers in (dict(module.named_buffers()), dict(program.named_buffers())):
        assert [name for name, tensor in buffers.items() if tensor.dtype == torch.bool]


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


MODULES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "group norm": lambda: nn.GroupNorm(8, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "prelu": lambda: nn.PReLU(8),
    "depthwise conv": lambda: nn.Conv2d(8, 8, 1, groups=8),
    "transposed conv": lambda: nn.ConvTranspose2d(8, 8, 1),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_parametrized_module_becomes_a_plain_one(name: str) -> None:
    module = MODULES[name]()
    parametrize.register_parametrization(module, "weight", Doubled())
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 1), module, nn.Conv2d(8, 4, 1)).double())
    kind, x = type(model[1]), normal(2, 3, 4, 5)
    written = reparam_compiler.prune(fx.symbolic_trace(copy.deepcopy(model)), (x,), ratio=0.5, round_to=1)
    plain = written.get_submodule("1")
    assert type(plain) is kind.__mro__[1]
    assert isinstance(plain.weight, nn.Parameter)
    assert plain.weight.shape[0] == 4
    assert parametrize.is_parametrized(model[1])
    assert sorted(written.state_dict()) == sorted(
        nn.Sequential(nn.Conv2d(3, 8, 1), MODULES[name](), nn.Conv2d(8, 4, 1)).state_dict()
    )


def test_a_norm_of_a_weight_along_the_channels_is_written_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), weight_norm(nn.BatchNorm2d(8), dim=None), nn.Conv2d(8, 4, 1)).double().eval()
    written = reparam_compiler.prune(fx.symbolic_trace(model), (normal(2, 3, 4, 5),), ratio=0.5, round_to=1)
    assert type(written.get_submodule("1")) is nn.BatchNorm2d


@pytest.mark.parametrize("how", ["module", "function"])
def test_an_embedding_that_scales_its_rows_keeps_its_width(how: str) -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8, max_norm=1.0), nn.Linear(8, 3)

        def forward(self, i: Tensor) -> Tensor:
            looked = self.table(i) if how == "module" else F.embedding(i, self.table.weight, max_norm=1.0)
            return self.head(looked)

    native = fx.symbolic_trace(Looked().eval())
    with pytest.raises(InfeasiblePruneError, match="no channel can be removed"):
        reparam_compiler.prune(native, (torch.tensor([[1, 2]]),), ratio=0.5, round_to=1)
