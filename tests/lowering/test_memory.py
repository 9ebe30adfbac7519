"""A plain net holds one input and one output at a time; branches hold more (Fig. 3 of the paper)."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tvm")

from tvm import relax

import reparam_compiler
from reparam_compiler.lowering.conv.algorithms import ConvShape, Tile, Winograd
from reparam_compiler.lowering.cpu.machine import vector_unit
from reparam_compiler.lowering.cpu.winograd import winograd_conv
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.memory_plan import memory_plan
from reparam_compiler.lowering.runtime.description import MemoryPlan
from reparam_compiler.lowering.target import resolve
from reparam_compiler.zoo import Architecture, RepVGG, randomise_batch_norm
from tests.support.lowered import lower

pytestmark = pytest.mark.tvm
NARROW = Architecture((1, 2, 2), (16, 16, 32), strides=(2, 1, 2))
FLOAT = 4  # bytes


def plan(model: nn.Module, *shape: int) -> MemoryPlan:
    target = resolve(None)
    with target:
        found = memory_plan(lower(to_relax(model.eval(), (torch.zeros(shape),)).module, target))
    assert found is not None
    return found


def pool(size: int) -> nn.Module:
    return nn.AvgPool2d(size, stride=1, padding=size // 2)


class Residual(nn.Module):
    """x is held until the addition, while the branch goes through two layers."""

    def forward(self, x: Tensor) -> Tensor:
        return pool(3)(pool(5)(x)) + x


class Split(nn.Module):
    """A view of the input, and two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return pool(3)(x).reshape(4, -1), pool(5)(x)


def test_a_plain_net_holds_one_input_and_one_output() -> None:
    map_bytes = 4 * 10 * 12 * FLOAT
    found = plan(nn.Sequential(pool(3), pool(5), pool(7)), 1, 4, 10, 12)
    assert found.peak == found.bound == 2 * map_bytes
    assert found.weights == 0


def test_a_residual_holds_its_input_until_the_addition() -> None:
    map_bytes = 4 * 10 * 12 * FLOAT
    found = plan(Residual(), 1, 4, 10, 12)
    assert found.peak == 3 * map_bytes
    assert found.bound == 2 * map_bytes


def test_outputs_are_held_until_the_end_and_a_reshape_costs_nothing() -> None:
    map_bytes = 4 * 10 * 12 * FLOAT
    found = plan(Split(), 1, 4, 10, 12)
    assert found.peak == 3 * map_bytes
    assert found.bound == 2 * map_bytes
    assert found.planned == 2 * map_bytes  # the input is the caller's


def test_the_training_form_holds_more_than_the_fused_net() -> None:
    torch.manual_seed(0)
    model = randomise_batch_norm(RepVGG(NARROW, num_classes=7).eval(), 0)
    x = torch.zeros(1, 3, 32, 40)
    training, fused = plan(model, *x.shape), plan(reparam_compiler.fuse(model, (x,)), *x.shape)
    assert fused.peak == fused.bound
    assert training.peak > training.bound
    assert training.peak > fused.peak
    assert training.planned > fused.planned
    assert training.weights > fused.weights


def test_the_plan_holds_what_is_alive_and_not_much_more() -> None:
    torch.manual_seed(0)
    model = RepVGG(NARROW, num_classes=7).eval()
    x = torch.zeros(1, 3, 32, 40)
    found = plan(reparam_compiler.fuse(model, (x,)), *x.shape)
    largest_input = 3 * 32 * 40 * FLOAT
    assert found.peak - largest_input <= found.planned <= 2 * found.peak


def test_scratch_is_what_a_kernel_allocates_and_registers_are_not() -> None:
    assert plan(nn.Conv2d(8, 8, 1), 1, 8, 6, 7).scratch == 0
    padded = plan(nn.Conv2d(8, 8, 5, padding=2), 1, 8, 6, 7).scratch
    assert padded >= 8 * 10 * 11 * FLOAT  # a copy with a halo


def test_an_executable_tells_its_plan_and_so_does_what_was_saved(tmp_path: Any) -> None:
    executable = reparam_compiler.compile(nn.Sequential(pool(3), pool(5)).eval(), (torch.zeros(1, 4, 6, 8),))
    assert executable.memory is not None
    assert executable.memory.peak == 2 * 4 * 6 * 8 * FLOAT
    executable.save(tmp_path / "model.tar")
    assert reparam_compiler.load(tmp_path / "model.tar").memory == executable.memory


def test_tvmc_tells_it_in_a_line() -> None:
    from reparam_compiler.lowering import Executable
    from reparam_compiler.lowering.runtime.variant import Variant
    from reparam_compiler.tvmc.tables import memory_line

    plan = MemoryPlan(peak=3 * 2**20, bound=2**21, planned=2**21, scratch=2**19, weights=2**25)
    assert memory_line(Executable((Variant("{}", (), (), memory=plan),))) == (
        "memory: activations 3.00 MiB at once (one input and one output: 2.00 MiB), 2.00 MiB allocated for them; "
        "scratch 0.50 MiB; weights 32.00 MiB"
    )
    assert "not known" in memory_line(Executable((Variant("{}", (), ()),)))


def test_a_symbolic_size_has_no_plan() -> None:
    from tvm import relax, tirx

    rows = tirx.Var("n", "int64")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((rows, 4), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(x)))
    assert memory_plan(builder.get()) is None


def test_scratch_is_that_of_one_block_of_tiles() -> None:
    shape, target = ConvShape(1, 28, 28, 16, 16, (3, 3), padding=(1, 1, 1, 1)), resolve(None)
    unit, whole = vector_unit(target), Winograd((4, 4), Tile(4, 16))
    blocked = replace(whole, block=7)
    found = [_scratch_of(winograd_conv(shape, form, (), unit)) for form in (whole, blocked)]
    assert found == [whole.scratch(shape, unit), blocked.scratch(shape, unit)]
    assert found[0] > 6 * found[1]


def _scratch_of(kernel: Any) -> int:
    builder = relax.BlockBuilder()
    with builder.function("main", []):
        builder.emit_func_output(relax.ShapeExpr([1]))
    builder.add_func(kernel, "kernel")
    found = memory_plan(builder.get())
    assert found is not None
    return found.scratch
