"""Many spellings of calls in one model: a branch is a conv of 16 channels, what is spelled, and a head.

Model([spelled(lambda n, y: y.narrow(1, 0, 8))])
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.models import opening
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.pruning import pipeline
from reparam_compiler.passes.pruning.slice_channels import masked
from tests.support.onnx_models import exported, run

FLOAT32 = 1e-5  # relative, of outputs in float32 against the masked graph in float64
Body = Callable[[Any, Tensor], Tensor]
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))


class Branch(nn.Module):
    """head(relu(body(relu(conv(x)))))."""

    def __init__(self, body: Body, parts: Mapping[str, Callable[[], Any]]) -> None:
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 16, 3, padding=1), body
        for name, make in parts.items():
            setattr(self, name, make())
        with torch.no_grad():
            shape = body(self, torch.zeros(2, 16, 4, 4)).shape
        self.last = len(shape) == 3  # `N C L`, for a linear head
        heads: dict[int, Callable[[int, int], nn.Module]] = {
            4: partial(nn.Conv2d, kernel_size=1),
            5: partial(nn.Conv3d, kernel_size=1),
        }
        self.head = heads.get(len(shape), nn.Linear)(shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.body(self, torch.relu(self.conv(x))))
        return self.head(y.transpose(1, 2) if self.last else y)


@dataclass(frozen=True)
class Spelling:
    """A body, and the parts that it calls. onnx: whether torch exports it to ONNX. batch: whether it runs on other batches."""

    body: Body
    parts: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    onnx: bool = True
    batch: bool = True


def spelled(body: Body, *, onnx: bool = True, batch: bool = True, **parts: Callable[[], Any]) -> Spelling:
    return Spelling(body, parts, onnx, batch)


class Model(nn.Module):
    def __init__(self, spellings: list[Spelling]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.branches = nn.ModuleList(Branch(s.body, s.parts) for s in spellings)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x) for branch in self.branches)


def halves(pieces: Any) -> Tensor:
    return pieces[0] + 0.5 * pieces[1]


def turned(pieces: Any, count: int = 2) -> Tensor:
    return torch.cat([pieces[i] for i in reversed(range(count))], 1)


def weight(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


def native(model: nn.Module, kind: str, folder: Path) -> Any:
    match kind:
        case "module":
            return opening.open(model, (X,)).native
        case "fx":
            return fx.symbolic_trace(model)
        case "onnx":
            return exported(model, X, folder, dynamo=False, dynamic=False)
        case _:
            program = torch.export.export(model, (X,), dynamic_shapes=({0: Dim("batch")},) if kind == "dynamic" else None)
            return program.run_decompositions() if kind == "decomposed" else program


def outputs(model: Any, x: Tensor) -> list[Tensor]:
    if isinstance(model, nn.Module):
        return list(model(x))
    if isinstance(model, torch.export.ExportedProgram):
        return list(model.module()(x))
    return [torch.from_numpy(value) for value in run(model, {model.graph.input[0].name: x.numpy()})]


def widths_after_pruning(spellings: Sequence[Spelling], kind: str, folder: Path) -> list[int]:
    """How many channels of each branch stay at half of them; what is written must compute the masked reference."""
    before = native(Model(list(spellings)).eval(), kind, folder)
    reading = frontend_for(before).read(before, None if kind == "onnx" else (X,))
    result = pipeline.prune(reading.graph, ratio=0.5, round_to=1)
    (source,) = (node.id for node in reading.graph if isinstance(node.op, ops.Input))
    x = Y if kind == "dynamic" else X
    hidden = masked(reading.graph, result.groups, result.keep)
    expected = evaluate(hidden, {source: x})
    found = outputs(reading.write(result.graph), x)
    for index, (output, value) in enumerate(zip(hidden.outputs, found, strict=True)):
        assert difference(expected[output], value).relative <= FLOAT32, f"branch {index}"
    widths = {param.origin: param.shape[0] for node in result.graph for param in node.params if param.shape}
    return [widths[f"branches.{index}.conv.weight"] for index in range(len(spellings))]
