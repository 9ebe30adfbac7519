"""Padding spelled in slices, indices and writes is the padding that it is, on the sizes that the model has, or none."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.export import Dim

import reparam_compiler
from reparam_compiler.core.kernel import PaddingMode
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, TensorType
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.fusion.regions import Region
from reparam_compiler.passes.fusion.spelled_padding import with_pads
from reparam_compiler.vocabulary.padding import TORCH_PAD
from tests.support.small_models import EXACT, normal, randomised, relative_error, run

SIZES = (7, 6, 5)
INDEX: dict[PaddingMode, str] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""What numpy calls a mode."""


def found(nodes: list[Node], known: TensorType | None, *, fixed: bool = True) -> ops.Op | None:
    """The op of the last node, where these spell one."""
    rank = 2 if known is None else len(known.shape) - 2
    graph = Graph.of([Node("x", ops.Input(), (), known), *nodes], [nodes[-1].id], sizes_are_fixed=fixed)
    region = Region("x", nodes[-1].id, tuple(nodes))
    padded = with_pads(graph, region, frozenset(), SourceLayout(3, rank))
    if padded is None:
        return None
    (node,) = padded.nodes
    assert node.inputs == ("x",)
    return node.op


def indexed(axis: int, table: np.ndarray, x: str = "x") -> Node:
    """What a decomposed program makes of one axis."""
    places = torch.from_numpy(table.copy())
    return Node(f"{x}_{axis}", ops.Opaque("index", lambda value: value.index_select(axis, places)), (x,))


@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data(), rank=st.integers(1, 3), mode=st.sampled_from(["reflect", "replicate", "circular"]))
def test_indices_of_each_axis_are_one_pad(data: st.DataObject, rank: int, mode: PaddingMode) -> None:
    pairs = tuple((data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in range(rank))
    nodes: list[Node] = []
    for axis, (size, pair) in enumerate(zip(SIZES, pairs, strict=False), start=2):
        table = np.pad(np.arange(size), pair, INDEX[mode])  # type: ignore[call-overload]
        nodes.append(indexed(axis, table, nodes[-1].id if nodes else "x"))
    op = found(nodes, TensorType("f32", (2, 3, *SIZES[:rank])))
    assert isinstance(op, ops.Pad)
    x = normal(2, 3, *SIZES[:rank])
    amounts = [n for pair in reversed(op.padding[2:]) for n in pair]
    expected = F.pad(x, [n for pair in reversed(pairs) for n in pair], TORCH_PAD[mode])
    assert torch.equal(F.pad(x, amounts, TORCH_PAD[op.mode]), expected)


def wrapped(x: Tensor) -> Tensor:
    return torch.cat([x[:, :, -2:], x, x[:, :, :1]], 2)


def test_open_sizes_are_padded_alike_or_not_at_all() -> None:
    joined = Node("y", ops.Opaque("wrap", wrapped), ("x",))
    circular = ops.Pad(((0, 0), (0, 0), (2, 1), (0, 0)), "circular")
    assert found([joined], None) == circular
    assert found([joined], TensorType("f32", ("n", 3, "h", 6))) == circular
    table = np.pad(np.arange(7), 1, "reflect")
    reflected = ops.Pad(((0, 0), (0, 0), (1, 1), (0, 0)), "reflect")
    known = TensorType("f32", (2, 3, 7, 6))
    assert found([indexed(2, table)], known) == reflected
    assert found([indexed(2, table)], known, fixed=False) is None  # another size would be cut to seven positions
    assert found([indexed(3, np.array([0, 0, 1, 2, 3, 4, 5, 5]))], TensorType("f32", ("n", 3, "h", 6))) is not None
    assert found([joined], TensorType("f32", (2**40, 3, 2**40, 6))) is None


def test_what_asks_another_value_for_its_size_is_left_to_the_rules() -> None:
    """A part of a region that cannot be run by itself."""
    nodes = [
        Node("other", ops.Elementwise("relu"), ("x",)),
        Node("size", ops.Opaque("size", lambda value: value.shape[2], facts=ops.Facts.SIZE_QUERY), ("other",)),
        Node("y", ops.Opaque("narrow", lambda value, size: value[:, :, :size]), ("x", "size")),
        Node("sum", ops.Add((1.0, 1.0)), ("y", "other")),
    ]
    graph = Graph.of([Node("x", ops.Input(), ()), *nodes], ["sum"])
    assert with_pads(graph, Region("x", "sum", tuple(nodes)), frozenset({"size"}), SourceLayout(3, 2)) is None


@pytest.mark.parametrize(
    "moves",
    [
        lambda x: x.flip(2),
        lambda x: x.roll(1, 2),
        lambda x: F.pad(x, (1, 1), value=1.0),
        lambda x: torch.cat([x[:, :, :1], x], 2).roll(1, 1),
        lambda x: torch.cat([x, x], 0),
        lambda x: x.repeat_interleave(2, 2),
        lambda x: torch.cat([x[:, :, 1:2], x, x[:, :, :1]], 2),
        lambda x: 2 * torch.cat([x[:, :, :1], x], 2),
        lambda x: torch.cat([x[:, :, :1], x.relu()], 2) - 1,
        lambda x: x.sum(),
    ],
)
def test_what_moves_elements_otherwise_is_no_pad(moves: Callable[[Tensor], Tensor]) -> None:
    assert found([Node("y", ops.Opaque("moves", moves), ("x",))], TensorType("f32", (2, 3, 7, 6))) is None


MODES = ("reflect", "replicate", "circular")


class Padded(nn.Module):
    """A block for each mode, over so many axes; its border is filled by the conv, or by a pad before it."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        super().__init__()
        kinds = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))
        each = [(kinds[rank - 1], mode) for rank, mode in zip(ranks, MODES, strict=True)]
        self.wide = nn.ModuleList(conv(4, 4, 3, padding=int(m != "replicate"), padding_mode=m) for (conv, _), m in each)
        self.point = nn.ModuleList(conv(4, 4, 1) for (conv, _), _ in each)
        self.norm = nn.ModuleList(norm(4) for (_, norm), _ in each)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        found = []
        for x, wide, point, norm in zip(inputs, self.wide, self.point, self.norm, strict=True):
            y = x if wide.padding[0] else F.pad(x, (1,) * 2 * (x.ndim - 2), wide.padding_mode)
            found.append(torch.relu(norm(wide(y)) + point(x)))
        return found


@pytest.mark.parametrize(("ranks", "opened"), [((1, 2, 3), False), ((2, 2, 2), True)])
def test_padded_blocks_of_decomposed_programs_are_fused(ranks: tuple[int, ...], opened: bool) -> None:
    model = randomised(Padded(ranks).double())
    inputs = tuple(normal(2, 4, *SIZES[:rank]) for rank in ranks)
    open_sizes = tuple({0: Dim(f"batch{i}", max=9), 2: Dim(f"first{i}", min=4, max=99)} for i in range(3))
    program = torch.export.export(model, inputs, dynamic_shapes=(open_sizes,) if opened else None).run_decompositions()
    fused, report = reparam_compiler.fuse(program, return_report=True)
    assert [f.op for f in report.fusions] == [f"conv pad=1 mode={mode}" for mode in MODES]
    others = tuple(normal(3, 4, 9, *SIZES[1:rank]) for rank in ranks) if opened else inputs
    assert relative_error(run(model, *others), run(fused, *others)) < EXACT


def test_a_wrapped_border_as_people_write_it_is_fused_with_its_block() -> None:
    class Panorama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.point = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([x[..., -1:], x, x[..., :1]], -1)
            return torch.relu(self.wide(torch.cat([y[:, :, -1:], y, y[:, :, :1]], 2)) + self.point(x))

    model, x = Panorama().double(), normal(2, 4, 7, 6)
    for inputs in (None, (x,)):
        fused, report = reparam_compiler.fuse(fx.symbolic_trace(model), inputs, return_report=True)
        assert [f.op for f in report.fusions] == ["conv pad=1 mode=circular"]
        assert relative_error(run(model, x), run(fused, x)) < EXACT
