"""Small torch models in training form, each with an input for it, and what the tests of `fuse` do with them.

Statistics of norms are random and no input is square: defaults hide bugs.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

import reparam_compiler
from reparam_compiler.api.report import FuseReport

Kind = Literal["fx", "export", "module"]
KINDS: tuple[Kind, ...] = ("fx", "export", "module")
EXACT = 1e-9
"""float64, relative to the largest value: nothing but rounding in another order."""


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, with norms whose every number is away from its default."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                shape = module.running_mean.shape
                module.running_mean.copy_(torch.randn(shape, generator=random))
                module.running_var.copy_(0.5 + torch.rand(shape, generator=random))
                if module.affine:
                    module.weight.copy_(torch.randn(shape, generator=random))
                    module.bias.copy_(torch.randn(shape, generator=random))
    return model.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Random float64 values."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Float32Only(nn.Module):
    """Runs in one dtype only: it brings its input to float32 on its way."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(x.float())


def traced_as(kind: Kind, model: nn.Module, inputs: Sequence[Any]) -> Any:
    """What the caller gives to `fuse`: it shares nothing with `model`."""
    model = copy.deepcopy(model)
    if kind == "fx":
        return fx.symbolic_trace(model)
    return torch.export.export(model, tuple(inputs)) if kind == "export" else model


def run(model: Any, *inputs: Any) -> Any:
    """A model or a program on copies of the inputs."""
    module = model.module() if isinstance(model, ExportedProgram) else copy.deepcopy(model)
    with torch.no_grad():
        return module(*_pytree.tree_map_only(Tensor, torch.clone, inputs))


def relative_error(expected: Any, found: Any) -> float:
    """The largest difference over all tensors, relative to the largest value of each."""
    pairs = zip(_pytree.tree_leaves(expected), _pytree.tree_leaves(found), strict=True)
    errors = []
    for a, b in pairs:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.numel():
            errors.append(((a - b).abs().max() / a.abs().max().clamp(min=1e-300)).item())
    return max(errors, default=0.0)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@dataclass(frozen=True)
class Fused:
    """What `fuse` gave for a model in float64, and how far it is from the original."""

    model: Any
    report: FuseReport
    error: float

    @property
    def reasons(self) -> list[str]:
        """Why what was refused was."""
        return [refusal.reason for refusal in self.report.refusals]


def fuse_in_float64(model: nn.Module, *inputs: Tensor, kind: Kind = "fx", verify: bool = True, shapes: bool = False) -> Fused:
    """Fuses a copy of the model in float64 and runs both; `shapes` gives the example inputs to `fuse` as well."""
    model = copy.deepcopy(model).double().eval()
    given = traced_as(kind, model, inputs)
    fused, report = reparam_compiler.fuse(given, inputs if shapes else None, verify=verify, return_report=True)
    return Fused(fused, report, relative_error(run(model, *inputs), run(fused, *inputs)))


class Pieces(nn.Module):
    """The parts that most tests wire up: each gives a `forward` over `self.wide`, `self.point` and `self.norm`."""

    def __init__(self, wiring: Callable[["Pieces", Tensor], Any], channels: int = 4) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.point = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.wiring = wiring
        randomised(self)

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


class Together(nn.Module):
    """Several nets, each with an input of its own: one compilation, or one export, for all."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, *inputs: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
        found = [net(x) for net, x in zip(self.nets, inputs, strict=True)]
        return tuple(each if isinstance(each, tuple) else (each,) for each in found)
