"""What is written in place is read as it was or as it is, never the other way round."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

import reparam_compiler
from reparam_compiler.frontends.torch.aliasing import find_writes
from reparam_compiler.frontends.torch.called import resolve
from tests.support.small_models import EXACT, KINDS, Kind, Pieces, fuse_in_float64, normal, relative_error, run, traced_as

Wiring = Callable[[Pieces, Tensor], Any]


def source_written_after_its_branches_read_it(m: Pieces, x: Tensor) -> Tensor:
    x = torch.sin(x)
    a, b = m.wide(x), m.norm(x)
    x.mul_(3)
    total = a + b
    return total + torch.cos(x)


def source_written_through_a_view_between_its_branches(m: Pieces, x: Tensor) -> Tensor:
    x = torch.sin(x)
    a = m.wide(x)
    x[:, :2].add_(1)
    return a + m.norm(x)


def source_written_through_a_view_before_the_sum(m: Pieces, x: Tensor) -> Tensor:
    x = torch.sin(x)
    a, b = m.wide(x), m.norm(x)
    x[:, :2].add_(1)
    return torch.relu(a + b)


def source_written_between_its_branches(m: Pieces, x: Tensor) -> Tensor:
    x = torch.sin(x)
    a = m.wide(x)
    x.mul_(3)
    return torch.relu(a + m.norm(x))


def relu_in_place_by_position(m: Pieces, x: Tensor) -> Tensor:
    x = torch.sin(x)
    a = m.wide(x)
    F.relu(x, True)
    return torch.relu(a + m.norm(x))


def written_under_another_name(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    z = y.detach()
    z.mul_(2)
    return torch.relu(m.norm(y))


def written_through_a_dropout_that_does_nothing(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    F.dropout(y, 0.5, False).mul_(2)
    return torch.relu(m.norm(y))


def written_through_a_reshape(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y.view(1, 4, 30).mul_(2)
    return torch.relu(m.norm(y))


def power_in_place(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y.pow_(2)
    return torch.relu(m.norm(y))


def sums_in_place(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y += m.norm(x)
    y += x
    return y.relu_()


def added_to_what_is_read_later(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y.add_(m.point(x))
    return torch.relu(y) + torch.sigmoid(m.norm(y))


def sum_of_a_dropped_out_source(m: Pieces, x: Tensor) -> Tensor:
    y = F.dropout(x, 0.0, True)
    y.add_(1)
    return torch.relu(m.norm(m.wide(x)) + y)


def kernel_filled_in_place(m: Pieces, x: Tensor) -> Tensor:
    ones = torch.zeros_like(m.wide.weight)
    ones.fill_(2.0)
    return torch.relu(F.conv2d(x, m.wide.weight * ones, None, 1, 1) + m.norm(x))


def kernel_filled_through_a_view(m: Pieces, x: Tensor) -> Tensor:
    centre = torch.zeros_like(m.wide.weight)
    centre[:, :, 1, 1].fill_(2.0)
    return torch.relu(F.conv2d(x, m.wide.weight * centre, None, 1, 1) + m.norm(x))


def copied_before_it_is_written(m: Pieces, x: Tensor) -> Tensor:
    x = torch.sin(x)
    y = x.clone()
    x.mul_(2)
    return torch.relu(m.norm(m.wide(y))) + x


def copy_written(m: Pieces, x: Tensor) -> Tensor:
    x = torch.sin(x)
    y = x.clone()
    y.mul_(2)
    return torch.relu(m.norm(m.wide(x)) + m.point(x)) + y


def dropout_in_place_that_does_nothing(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    z = F.dropout(y, 0.5, False, True)
    return torch.relu(m.norm(y)) + z


def contiguous_that_may_copy(m: Pieces, x: Tensor) -> Tensor:
    x = torch.sin(x)
    y = x.contiguous()
    x.mul_(2)
    return torch.relu(m.norm(m.wide(y))) + x


WIRINGS: list[Wiring] = [
    copied_before_it_is_written,
    copy_written,
    dropout_in_place_that_does_nothing,
    contiguous_that_may_copy,
    source_written_after_its_branches_read_it,
    source_written_through_a_view_between_its_branches,
    source_written_through_a_view_before_the_sum,
    source_written_between_its_branches,
    relu_in_place_by_position,
    written_under_another_name,
    written_through_a_dropout_that_does_nothing,
    written_through_a_reshape,
    power_in_place,
    sums_in_place,
    added_to_what_is_read_later,
    sum_of_a_dropped_out_source,
    kernel_filled_in_place,
    kernel_filled_through_a_view,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wiring", WIRINGS, ids=lambda wiring: wiring.__name__)
def test_in_place_calls_keep_every_value(wiring: Wiring, kind: Kind) -> None:
    assert fuse_in_float64(Pieces(wiring), normal(1, 4, 6, 5), kind=kind).error < EXACT


@pytest.mark.parametrize("wiring", [sums_in_place, written_under_another_name, source_written_after_its_branches_read_it])
def test_in_place_calls_that_hide_nothing_are_fused(wiring: Wiring) -> None:
    assert len(fuse_in_float64(Pieces(wiring), normal(1, 4, 6, 5)).report.fusions) == 1


class Counting(Pieces):
    """bn(conv(x)) times the number of calls so far."""

    def __init__(self) -> None:
        super().__init__(lambda m, x: None)
        self.register_buffer("calls", torch.zeros(1, 4, 1, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.norm(self.wide(x)) * self.calls


@pytest.mark.parametrize("kind", ["export", "module"])
def test_a_buffer_that_the_model_counts_in_is_no_constant(kind: Kind) -> None:
    model, x = Counting(), normal(1, 4, 6, 5)
    given = traced_as(kind, model.double(), (x,))
    fused, report = reparam_compiler.fuse(given, (x,), return_report=True)
    assert [f.nodes for f in report.fusions] == [("conv2d", "batch_norm")]
    assert not model.calls.any()
    module = fused.module() if kind == "export" else fused
    with torch.no_grad():
        first, second = module(x), module(x)
    assert relative_error(run(model.double(), x), first) < EXACT
    torch.testing.assert_close(second, 2 * first, rtol=1e-12, atol=1e-12)  # float64


def test_a_buffer_written_to_while_tracing_leaves_a_module_to_export_or_as_it_is() -> None:
    """fx.symbolic_trace runs `self.calls.add_(1)` once, on the model itself, and leaves it out of the graph."""
    fused = fuse_in_float64(Counting(), normal(1, 4, 6, 5), kind="module")
    assert fused.error < EXACT
    assert not fused.report.fusions
    assert "cannot be traced whole" in fused.report.to_text()


def test_a_buffer_mutated_by_a_functional_program_is_no_constant() -> None:
    x = normal(1, 4, 6, 5)
    program = torch.export.export(Counting().double().eval(), (x,)).run_decompositions()
    fused = reparam_compiler.fuse(program).module()
    with torch.no_grad():
        first, second = fused(x), fused(x)
    torch.testing.assert_close(second, 2 * first, rtol=1e-12, atol=1e-12)  # float64


def test_what_is_written_by_out_is_left_alone() -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        total = torch.empty_like(x)
        torch.add(m.wide(x), m.norm(x), out=total)
        return torch.relu(m.point(total))

    model = Pieces(forward).requires_grad_(False)
    fused = fuse_in_float64(model, normal(1, 4, 6, 5))
    assert fused.error < EXACT
    assert not fused.report.fusions


def written(graph: fx.Graph) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    found = find_writes(graph, lambda node: resolve(node, torch.nn.Module()), lambda node: None)
    rebound = {node.name: tuple(other.name for other in others) for node, others in found.rebound.items()}
    return rebound, {node.name for node in found.opaque}


def test_a_write_renames_every_name_of_the_tensor_and_no_view_of_it() -> None:
    def forward(x: Tensor) -> Tensor:
        same = x.detach()
        x.flatten()
        same.mul_(2)
        return x

    rebound, opaque = written(fx.symbolic_trace(forward).graph)
    assert rebound == {"mul_": ("x", "detach")}
    assert not opaque


def test_a_view_read_after_a_write_makes_all_that_touch_the_storage_opaque() -> None:
    def forward(x: Tensor, y: Tensor) -> Tensor:
        part = x.flatten()
        before = torch.sin(x)
        x.mul_(2)
        return torch.cos(part), before, torch.tan(y)

    _, opaque = written(fx.symbolic_trace(forward).graph)
    assert {"x", "flatten", "sin", "mul_", "cos"} <= opaque
    assert not {"y", "tan"} & opaque
