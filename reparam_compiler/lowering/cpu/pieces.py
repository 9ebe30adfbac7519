"""Functions that choose by position, as a concatenation does, with a plain loop nest for each range of positions.

    out[i, c] = f(if_then_else(64 <= c, y[i, c - 64], x[i, c]))
    ->  for i:  for c < 64: out[i, c] = f(x[i, c]);  for c < 32: out[i, 64 + c] = f(y[i, c])

A choice within a vector is taken element by element; in these loops nothing is chosen, and each runs by vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, sym, tirx
from tvm.s_tir import SBlock, SBlockRealize

from reparam_compiler.lowering.conv.scheduled import SPATIAL
from reparam_compiler.lowering.cpu.machine import SMALL, VectorUnit

SERIAL, PARALLEL = tirx.ForKind.SERIAL, tirx.ForKind.PARALLEL
CHOICE = "prim.if_then_else"
MOST_PIECES = 64
ROWS = 16  # from so many on the axes before the chosen one keep threads busy


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """What a function computes: its store, the variables of its axes, their extents; which axis is cut, and where."""

    store: Any
    variables: tuple[Any, ...]
    extents: tuple[int, ...]
    axis: int
    bounds: tuple[int, ...]

    def position(self, name: str) -> Any:
        """A new variable of the type of the axes' own."""
        return tirx.Var(name, self.variables[0].ty.dtype)


def in_pieces(sch: Any, unit: VectorUnit) -> Any:
    """The function of a schedule in pieces; None where it does not choose along one axis alone."""
    chosen = _chosen(sch)
    if chosen is None:
        return None
    threads = math.prod(chosen.extents) >= SMALL
    outer = chosen.extents[: chosen.axis]
    shared = threads and math.prod(outer) >= ROWS
    kinds = (PARALLEL, SERIAL) if shared else (SERIAL, PARALLEL if threads else SERIAL)
    row = chosen.position("row")
    pieces: list[Any] = []
    for piece in zip(chosen.bounds, chosen.bounds[1:], strict=False):
        pieces += _piece(chosen, row, piece, unit, kinds[1])
    if any(map(_choices, pieces)):
        return None
    steps = tirx.SeqStmt(pieces) if len(pieces) > 1 else pieces[0]  # TVM has no sequence of one
    body = _loop(row, math.prod(outer), steps, kinds[0])
    root = SBlock([], [], [], "root", body)  # TVM's passes expect one
    return sch.mod["main"].with_body(SBlockRealize([], tirx.const(True, "bool"), root))


def _chosen(sch: Any) -> _Chosen | None:
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    block = sch.get(blocks[0])
    axes = list(block.iter_vars)
    if len(blocks) > 1 or not isinstance(block.body, tirx.BufferStore) or any(int(each.iter_type) != SPATIAL for each in axes):
        return None
    variables, extents = tuple(axis.var for axis in axes), tuple(int(axis.dom.extent) for axis in axes)
    cuts = {cut for choice in _choices(block.body.value) for cut in _cuts(choice.args[0], variables)}
    if len({axis for axis, _ in cuts}) != 1:
        return None
    (axis,) = {axis for axis, _ in cuts}
    bounds = (0, *sorted(at for _, at in cuts if 0 < at < extents[axis]), extents[axis])
    return _Chosen(block.body, variables, extents, axis, bounds) if len(bounds) <= MOST_PIECES else None


def _choices(root: Any) -> list[Any]:
    """Every choice that is made in an expression or a statement."""
    found: list[Any] = []
    tvm_ffi.structural_walk(
        root, (ir.Call, lambda call: found.append(call) if getattr(call.op, "name", "") == CHOICE else None)
    )
    return found


def _cuts(condition: Any, variables: Sequence[Any]) -> list[tuple[int, int]]:
    """The axes that a condition compares with numbers, and the first positions behind each number."""
    found = []

    def compare(node: Any) -> None:
        for side, other, behind in ((node.a, node.b, (tirx.LT, tirx.GE)), (node.b, node.a, (tirx.GT, tirx.LE))):
            axis = next((index for index, variable in enumerate(variables) if side.same_as(variable)), None)
            if axis is not None and isinstance(other, tirx.IntImm):
                found.append((axis, int(other.value) + (not isinstance(node, behind))))

    tvm_ffi.structural_walk(condition, ((tirx.LT, tirx.LE, tirx.GT, tirx.GE), compare))
    return found


def _piece(chosen: _Chosen, row: Any, piece: tuple[int, int], unit: VectorUnit, kind: Any) -> list[Any]:
    """The loops that compute one range of the chosen axis: whole vectors of the last axis, and what is left of it."""
    outer, (low, high) = chosen.extents[: chosen.axis], piece
    *inner, width = high - low, *chosen.extents[chosen.axis + 1 :]
    lanes = unit.lanes(str(chosen.store.buffer.dtype))
    nests = []
    for first, vectors, step in ((0, width // lanes, lanes), (width // lanes * lanes, 1, width % lanes)):
        if not vectors or not step:
            continue
        inside, vector, lane = map(chosen.position, ("inside", "vector", "lane"))
        at = [*_places(row, outer), *_places(inside, inner), first + vector * step + lane]
        at[chosen.axis] = at[chosen.axis] + low
        bounds = {row: math.prod(outer), inside: math.prod(inner), vector: vectors, lane: step}
        body = _loop(lane, step, _store_at(chosen, at, bounds), tirx.ForKind.VECTORIZED)
        nests.append(_loop(inside, math.prod(inner), _loop(vector, vectors, body), kind))
    return nests


def _store_at(chosen: _Chosen, at: Sequence[Any], bounds: dict[Any, int]) -> Any:
    """The store of the element at these positions; the bounds of their variables decide its choices."""
    analyzer = sym.Analyzer()
    for variable, extent in bounds.items():
        analyzer.bind(variable, ir.Range(tirx.const(0, variable.ty.dtype), tirx.const(extent, variable.ty.dtype)))
    places = dict(zip(chosen.variables, at, strict=True))
    store = tvm_ffi.structural_map(chosen.store, (tirx.Var, lambda variable: places.get(variable, variable)))
    return tirx.BufferStore(store.buffer, analyzer.simplify(store.value), [analyzer.simplify(index) for index in store.indices])


def _places(position: Any, extents: Sequence[int]) -> list[Any]:
    """The position on each of some axes of a position on all of them."""
    places = []
    for axis, extent in enumerate(extents):
        places.append(position // math.prod(extents[axis + 1 :]) % extent)
    return places


def _loop(variable: Any, extent: int, body: Any, kind: Any = SERIAL) -> Any:
    kind = SERIAL if extent == 1 else kind
    return tirx.For(variable, tirx.const(0, variable.ty.dtype), tirx.const(extent, variable.ty.dtype), kind, body)
