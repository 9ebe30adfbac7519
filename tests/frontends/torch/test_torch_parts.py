"""Writes to a part of a value: read as assignments on every route, evaluated, fused, and gone with what is fused."""

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import reparam_compiler
from reparam_compiler.frontends.base import Reading
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.ir.printer import to_text
from tests.support.small_models import EXACT, Pieces, normal, relative_error, run

X = normal(2, 4, 6, 5)
ROUTES = ("setitem", "unlifted", "export", "decomposed")
"""A graph with `setitem` calls, an exported program as a module, as it is, and decomposed."""


def given(route: str, model: nn.Module, x: Tensor = X, **how: Any) -> Any:
    if route == "setitem":
        return _SetItems(model).traced()
    return programs_as(route, torch.export.export(model, (x,), **how))


def programs_as(route: str, program: ExportedProgram) -> Any:
    if route == "unlifted":
        return program.module()
    return program if route == "export" else program.run_decompositions({})


@cache
def wired(wiring: "Wiring") -> tuple[Pieces, ExportedProgram]:
    """A net, and its program: exported once for all routes."""
    model = Pieces(wiring).double()
    return model, torch.export.export(model, (X,))


@cache
def native(route: str, wiring: "Wiring") -> Any:
    """A net as it comes by this route. Nothing here changes it: `fuse` makes a copy."""
    model, program = wired(wiring)
    return given(route, model) if route == "setitem" else programs_as(route, program)


@cache
def sized() -> tuple[nn.Module, ExportedProgram]:
    """A net with a border, and its program with two free sizes."""
    model, dims = bordered(), {0: torch.export.Dim("batch"), 2: torch.export.Dim("height")}
    return model, torch.export.export(model, (X,), dynamic_shapes=(dims,))


class _SetItems(fx.Tracer):
    """A symbolic tracer that records `y[...] = v`, as torch.compile's does; fx's own refuses it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Assignable(node, self)

    def traced(self) -> fx.GraphModule:
        return fx.GraphModule(self.model, self.trace(self.model))


class _Assignable(fx.Proxy):
    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def read(given: Any, x: Tensor = X) -> Reading:
    if isinstance(given, fx.GraphModule):
        return FxFrontend().read(given, (x,))  # type: ignore[return-value]
    return ExportFrontend().read(given)  # type: ignore[return-value]


def value(graph: Graph, x: Tensor) -> Tensor:
    (source,) = [node.id for node in graph if isinstance(node.op, ops.Input)]
    found: Tensor = evaluate(graph, {source: x})[graph.outputs[0]]
    return found


def written(graph: Graph) -> list[ops.SliceUpdate]:
    return [node.op for node in graph if isinstance(node.op, ops.SliceUpdate)]


class Bordered(nn.Module):
    """A branch of DBB: 1x1-BN, padded by what the BN gives for zero, 3x3-BN; and a 3x3-BN beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.inner, self.outer = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.BatchNorm2d(4)
        self.wide, self.beside = nn.Conv2d(6, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        for norm in (self.inner, self.outer):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.inner
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        pad = (norm.bias.detach() - norm.running_mean * scale).view(1, -1, 1, 1)
        y = F.pad(norm(self.point(x)), [1] * 4)
        y[:, :, 0:1, :] = pad
        y[:, :, -1:, :] = pad
        y[:, :, :, 0:1] = pad
        y[:, :, :, -1:] = pad
        return torch.relu(self.outer(self.wide(y)) + self.beside(x))


def bordered() -> nn.Module:
    return Bordered().double().eval()


@cache
def borders(route: str) -> tuple[nn.Module, Any]:
    """A net with a border, and how it comes by this route."""
    model = bordered()
    return model, given(route, model)


STRIPS = [ops.SliceUpdate(cuts) for cuts in (((2, 0, 1),), ((2, -1, None),), ((3, 0, 1),), ((3, -1, None),))]


@pytest.mark.parametrize("route", ROUTES)
def test_a_border_padded_by_a_bias_is_read_as_four_assignments(route: str) -> None:
    model, native = borders(route)
    graph = read(native).graph
    assert written(graph) == STRIPS
    assert relative_error(run(model, X), value(graph, X)) < EXACT
    assert not [node.op.name for node in graph if node.op.name in ("slice", "getitem", "expand", "copy", "slice_scatter")]


def test_all_spellings_give_the_same_text() -> None:
    texts = {to_text(read(borders(route)[1]).graph).replace("GuardsFn", "") for route in ("export", "decomposed")}
    assert len(texts) == 1
    (text,) = texts
    assert text == to_text(read(borders("setitem")[1]).graph)


@pytest.mark.parametrize("route", ROUTES)
def test_a_border_padded_by_a_bias_is_fused_and_its_writes_are_gone(route: str) -> None:
    model, native = borders(route)
    fused, report = reparam_compiler.fuse(native, (X,), return_report=True)
    assert len(report.fusions) == 1
    assert relative_error(run(model, X), run(fused, X)) < EXACT
    calls = {str(node.target) for node in fused.graph.nodes if node.op == "call_function"}
    assert not [name for name in calls if any(word in name for word in ("setitem", "copy", "slice", "expand", "pad", "sub"))]


@pytest.mark.parametrize("route", ["export", "decomposed", "unlifted"])
def test_sizes_stay_free_where_a_border_was_written(route: str) -> None:
    model, program = sized()
    fused = reparam_compiler.fuse(programs_as(route, program), (X,))
    other = normal(3, 4, 9, 5)
    assert relative_error(run(model, other), run(fused, other)) < EXACT


Wiring = Callable[[Pieces, Tensor], Any]


def only_before_the_border(m: Pieces, x: Tensor) -> Tensor:
    """The region ends at the pad; the writes stay and go to the new conv's output."""
    y = F.pad(m.norm(m.wide(x)), (1, 1, 1, 1))
    y[:, :, 0:1] = torch.sin(x[:, :, :1, :1])
    y[:, :, -1:] = 2.0
    return torch.relu(y)


def after_the_border(m: Pieces, x: Tensor) -> Tensor:
    """The region begins at a value that was written to."""
    y = torch.sin(x)
    y[:, :, 0:1] = 3.0
    return torch.relu(m.norm(m.wide(y)) + m.point(y))


def between(m: Pieces, x: Tensor) -> Tensor:
    """A region reads the value before the write, another one after it."""
    y = torch.sin(x)
    before = m.norm(m.wide(y))
    y[:, :, 0:1] = 3.0
    return torch.relu(before) + torch.relu(m.norm(m.wide(y)))


def whole_and_part(m: Pieces, x: Tensor) -> Tensor:
    """A write to the whole, and one to a part of what it gives."""
    y = m.wide(x)
    y.mul_(2)
    y[..., 1:3] = 1.0
    return torch.relu(m.norm(m.point(y)))


def through_another_name(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    z = y.detach()
    z[:, 1:2] = 0.5
    return torch.relu(m.norm(m.point(y)) + z)


def into_a_canvas(m: Pieces, x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 4, 8, 7)
    y[:, :, 1:-1, 1:-1] = m.norm(m.wide(x))
    return torch.relu(y)


def a_value_that_is_computed(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y[:, :, 2:3] = x[:, :, 0:1] * 2
    return torch.relu(m.norm(y))


def a_kernel(m: Pieces, x: Tensor) -> Tensor:
    kernel = torch.zeros(4, 4, 3, 3, dtype=x.dtype)
    kernel[:, :, 1:2, 1:2] = m.point.weight
    return torch.relu(F.conv2d(x, kernel + m.wide.weight, None, 1, 1) + m.norm(x))


READ_AS_ASSIGNMENTS: list[tuple[Wiring, int, int]] = [
    (only_before_the_border, 2, 1),
    (after_the_border, 1, 1),
    (between, 1, 2),
    (whole_and_part, 1, 2),
    (through_another_name, 1, 1),
    (into_a_canvas, 1, 1),
    (a_value_that_is_computed, 1, 0),
    (a_kernel, 0, 1),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("wiring", "writes", "fusions"), READ_AS_ASSIGNMENTS, ids=lambda w: getattr(w, "__name__", ""))
def test_a_write_to_a_part_keeps_every_value(wiring: Wiring, writes: int, fusions: int, route: str) -> None:
    model, _ = wired(wiring)
    graph = read(native(route, wiring)).graph
    assert len(written(graph)) == writes
    assert relative_error(run(model, X), value(graph, X)) < EXACT
    fused, report = reparam_compiler.fuse(native(route, wiring), (X,), return_report=True)
    assert len(report.fusions) == fusions
    assert relative_error(run(model, X), run(fused, X)) < EXACT


def a_view_read_after(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    part = y[:, :2]
    y[:, :, 0:1] = 1.0
    return torch.relu(m.norm(y)) + part.sum()


def into_a_view(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    flat = y.view(2, 4, 30)
    flat[:, :, 3:5] = 1.0
    return torch.relu(m.norm(y))


def every_other(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y[:, :, ::2] = 1.0
    return torch.relu(m.norm(y))


def one_row(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y[:, :, 0] = 1.0
    return torch.relu(m.norm(y))


def a_part_of_a_part(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    z = y[:, :, 1:4]
    z[:, :, 1:2] = 1.0
    return torch.relu(m.norm(y))


def where_it_is_negative(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y[y < 0] = 0.0
    return torch.relu(m.norm(y))


def before_and_after_a_view_is_read(m: Pieces, x: Tensor) -> Tensor:
    y = m.wide(x)
    y[:, :, 0:1] = 1.0
    part = y[:, :2]
    y[:, :, 1:2] = 2.0
    return torch.relu(m.norm(y)) + part.sum()


LEFT_AS_THEY_ARE: list[Wiring] = [
    a_view_read_after,
    into_a_view,
    every_other,
    one_row,
    a_part_of_a_part,
    where_it_is_negative,
    before_and_after_a_view_is_read,
]


@pytest.mark.parametrize("route", ["setitem", "export"])
@pytest.mark.parametrize("wiring", LEFT_AS_THEY_ARE, ids=lambda wiring: wiring.__name__)
def test_what_a_view_would_show_is_left_as_it_is(wiring: Wiring, route: str) -> None:
    model, _ = wired(wiring)
    graph = read(native(route, wiring)).graph
    assert not written(graph)
    assert relative_error(run(model, X), value(graph, X)) < EXACT
    fused, report = reparam_compiler.fuse(native(route, wiring), (X,), return_report=True)
    assert not report.fusions
    assert relative_error(run(model, X), run(fused, X)) < EXACT


@pytest.mark.parametrize("wiring", LEFT_AS_THEY_ARE, ids=lambda wiring: wiring.__name__)
def test_functional_programs_have_no_views(wiring: Wiring) -> None:
    model, _ = wired(wiring)
    graph = read(native("decomposed", wiring)).graph
    assert relative_error(run(model, X), value(graph, X)) < EXACT
    fused = reparam_compiler.fuse(native("decomposed", wiring), (X,))
    assert relative_error(run(model, X), run(fused, X)) < EXACT


@pytest.mark.parametrize("route", ROUTES)
def test_a_constant_expanded_to_the_sizes_of_a_value_can_be_evaluated(route: str) -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        y = m.norm(m.point(x))
        row = m.norm.bias.view(1, -1, 1, 1).expand(x.size(0), -1, 1, x.size(3))
        y = torch.cat([row, y, row], 2)
        column = m.norm.bias.view(1, -1, 1, 1).expand(y.size(0), -1, y.shape[2], 1)
        return torch.relu(torch.cat([column, y, column], 3))

    model, dims = Pieces(forward).double(), {0: torch.export.Dim("batch"), 2: torch.export.Dim("height")}
    how = {} if route == "setitem" else {"dynamic_shapes": (None, dims)[1:]}
    graph = read(given(route, model, **how)).graph
    assert [node.op for node in graph if isinstance(node.op, ops.Concat)] == [ops.Concat(2), ops.Concat(3)]
    for x in (X, normal(3, 4, 8, 5)):
        assert relative_error(run(model, x), value(graph, x)) < EXACT


def test_a_write_to_the_callers_input_stays() -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        x[:, :, 0:1] = 0.0
        return torch.relu(m.norm(m.wide(x)))

    model = Pieces(forward).double()
    fused = reparam_compiler.fuse(given("setitem", model))
    x = X.clone()
    with torch.no_grad():
        fused(x)
    assert not x[:, :, 0:1].any()
