"""What can be done with a fused model: it is saved, copied, exported, trained and run at other sizes as any other."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import reparam_compiler
from tests.support.branch_blocks import block
from tests.support.small_models import (
    EXACT,
    normal,
    relative_error,
    run,
    traced_as,
)


@pytest.fixture
def fused_fx() -> tuple[fx.GraphModule, Tensor, Tensor]:
    model, x = block("repvgg")
    fused = reparam_compiler.fuse(traced_as("fx", model, (x,)), (x,))
    return fused, x, run(model, x)


def test_the_fused_module_is_made_of_ordinary_modules(fused_fx: tuple[fx.GraphModule, Tensor, Tensor]) -> None:
    fused, _, _ = fused_fx
    (conv,) = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert type(conv) is nn.Conv2d
    assert (conv.kernel_size, conv.padding, conv.in_channels, conv.out_channels) == ((3, 3), (1, 1), 8, 8)
    assert set(fused.state_dict()) == {"branches.fused.weight", "branches.fused.bias"}
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    "through",
    [
        copy.deepcopy,
        lambda m: through_a_file(m),
        lambda m: torch.compile(m, backend="eager"),
        lambda m: torch.compile(m, backend="aot_eager"),
        lambda m: torch.export.export(m, (normal(2, 8, 9, 7),)).module(),
        lambda m: reparam_compiler.fuse(m),
        lambda m: fx.symbolic_trace(m),
        lambda m: m.train(),
    ],
    ids=["deepcopy", "save", "compile_eager", "compile_aot", "export", "fuse_again", "trace_again", "train"],
)
def test_the_fused_module_goes_through(
    through: Callable[[nn.Module], Any], fused_fx: tuple[fx.GraphModule, Tensor, Tensor]
) -> None:
    fused, x, expected = fused_fx
    with torch.no_grad():
        assert relative_error(expected, through(fused)(x)) < EXACT  # float64


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def test_the_fused_module_loads_its_own_state_dict(fused_fx: tuple[fx.GraphModule, Tensor, Tensor]) -> None:
    fused, x, expected = fused_fx
    other = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(fused.state_dict())
    assert relative_error(expected, run(other, x)) < EXACT


def test_the_fused_module_has_the_gradient_of_the_original(fused_fx: tuple[fx.GraphModule, Tensor, Tensor]) -> None:
    fused, x, _ = fused_fx
    model, _ = block("repvgg")
    gradients = []
    for module in (model, fused):
        leaf = x.clone().requires_grad_()
        module(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert relative_error(*gradients) < EXACT
    assert all(parameter.grad is not None for parameter in fused.parameters())


def test_the_fused_program_saves_and_loads(tmp_path: Path) -> None:
    model, x = block("repvgg")
    fused = reparam_compiler.fuse(traced_as("export", model, (x,)))
    torch.export.save(fused, tmp_path / "fused.pt2")
    loaded = torch.export.load(tmp_path / "fused.pt2")
    assert relative_error(run(model, x), run(loaded, x)) < EXACT
    assert loaded.graph_signature.parameters == fused.graph_signature.parameters


@pytest.mark.parametrize(
    "through",
    [
        lambda program, x: torch.export.export(program.module(), (x,)),
        lambda program, x: program.run_decompositions(),
        lambda program, x: program.run_decompositions({}),
        lambda program, x: reparam_compiler.fuse(program),
        lambda program, x: copy.deepcopy(program),
    ],
    ids=["export", "decompose", "functionalise", "fuse_again", "deepcopy"],
)
def test_the_fused_program_goes_through(through: Callable[[ExportedProgram, Tensor], ExportedProgram]) -> None:
    model, x = block("repvgg")
    fused = reparam_compiler.fuse(traced_as("export", model, (x,)))
    assert relative_error(run(model, x), run(through(fused, x), x)) < EXACT


def test_a_decomposed_program_is_fused_too() -> None:
    model, x = block("repvgg")
    program = traced_as("export", model, (x,)).run_decompositions()
    fused, report = reparam_compiler.fuse(program, return_report=True)
    assert [len(fusion.nodes) for fusion in report.fusions] == [7]
    assert relative_error(run(model, x), run(fused, x)) < EXACT


def test_a_dynamic_batch_stays_dynamic() -> None:
    model, x = block("repvgg")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    fused, report = reparam_compiler.fuse(program, return_report=True)
    for batch in (2, 5):
        other = normal(batch, 8, 9, 7)
        assert relative_error(run(model, other), run(fused, other)) < EXACT
    assert report.fusions[0].shape.endswith(" 8 9 7")
    assert report.after.flops is None


def test_dynamic_height_and_width_stay_dynamic() -> None:
    model, x = block("repvgg")
    sizes = {2: torch.export.Dim("height", min=3), 3: torch.export.Dim("width", min=3)}
    fused = reparam_compiler.fuse(torch.export.export(model, (x,), dynamic_shapes=(sizes,)))
    other = normal(2, 8, 5, 12)
    assert relative_error(run(model, other), run(fused, other)) < EXACT
