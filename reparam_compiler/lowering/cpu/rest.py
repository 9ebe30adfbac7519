"""CPU schedules by rule for what no recipe makes: fused elementwise ops, pools, reductions, dense of unknown weights …"""

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx

from reparam_compiler.lowering.conv.scheduled import REDUCED, SCHEDULED, SPATIAL
from reparam_compiler.lowering.cpu.machine import SMALL, VectorUnit
from reparam_compiler.lowering.cpu.pieces import in_pieces

CHEAP = 16  # elements read, up to which an arithmetic expression may be computed more than once
PARTIAL = (4, 2, 1)  # vectors of partial results, of which the next step waits for none but its own
FREE_CALLS = ("prim.if_then_else", "prim.likely")


def schedule_rest(module: Any, unit: VectorUnit) -> Any:
    """Schedule each PrimFunc that no recipe made."""
    for variable, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc) and not (func.attrs and func.attrs.get(SCHEDULED)):
            module.update_func(variable, generic_schedule(func, unit))
    return module


def generic_schedule(func: Any, unit: VectorUnit) -> Any:
    """Inline what can be inlined; of each block left: outer axes in parallel, then reductions, the last axis by vectors.

    A function that the schedule primitives refuse (extern calls, symbolic shapes, sorting) keeps its plain loops.
    """
    try:
        return _scheduled(func, unit).with_attr(SCHEDULED, True)
    except tvm.s_tir.ScheduleError:  # for one, it has no root block
        return func.with_attr(SCHEDULED, True)


def _scheduled(func: Any, unit: VectorUnit) -> Any:
    sch = tvm.s_tir.Schedule(func)
    _inline(sch)
    if (pieces := in_pieces(sch, unit)) is not None:
        return pieces
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        trial = sch.copy()
        try:
            _schedule_block(trial, trial.get_sblock(sch.get(block).name_hint), unit)
        except tvm.s_tir.ScheduleError:
            continue
        sch = trial
    return sch.mod["main"]


def _inline(sch: Any) -> None:
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if _is_padding_of_a_sum(sch, block) or _is_repeated(sch, block):
            continue
        try:
            sch.compute_inline(block)
        except tvm.s_tir.ScheduleError:
            continue


def _is_repeated(sch: Any, block: Any) -> bool:
    """Whether inlining would compute a costly block more often than once an element, or nest two functions.

    Of x sigmoid(x), which reads x twice, chains would grow as 2^n; and TVM's passes visit a function of a function repeatedly.
    """
    body = sch.get(block)
    loads, functions = _read_by(body)
    if not body.writes or (len(loads) <= CHEAP and not functions):
        return False  # opaque, as of a sort, or cheap
    written, times = body.writes[0].source, 0
    for reader in map(sch.get, sch.get_consumers(block)):
        others, outer = _read_by(reader)
        if functions and outer:
            return True
        times += sum(load.source.same_as(written) for load in others) * _iterations(reader)
    return times > _iterations(body)


def _read_by(block: Any) -> tuple[list[Any], list[Any]]:
    """The elements that the body of a block reads, and the functions that it calls or holds."""
    loads: list[Any] = []
    functions: list[Any] = []

    def call(node: Any) -> None:
        if getattr(node.op, "name", "") not in FREE_CALLS:
            functions.append(node)

    walks = (ir.TensorLoad, loads.append), (tirx.Let, functions.append), (ir.Call, call)
    tvm_ffi.structural_walk(block.body, walks)
    return loads, functions


def _iterations(block: Any) -> int:
    return math.prod(int(axis.dom.extent) for axis in block.iter_vars)


def _is_padding_of_a_sum(sch: Any, block: Any) -> bool:
    """Whether a block selects (a padding, a dilation) for a reduction, whose inner loop the select would slow down."""
    sums = any(int(axis.iter_type) == REDUCED for reader in sch.get_consumers(block) for axis in sch.get(reader).iter_vars)
    return sums and "if_then_else" in str(sch.get(block).body)


def _schedule_block(sch: Any, block: Any, unit: VectorUnit) -> None:
    loops = sch.get_loops(block)
    kinds = [int(axis.iter_type) for axis in sch.get(block).iter_vars]
    spatial = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == SPATIAL]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == REDUCED]
    if len(loops) != len(kinds) or len(spatial) + len(reduced) != len(kinds) or not loops or not sch.get(block).writes:
        return
    extents = [int(sch.get(loop).extent) for loop in loops]
    lanes = unit.lanes(str(sch.get(block).writes[0].source.dtype))
    vectors = next((count for count in PARTIAL if math.prod(extents) % (count * lanes) == 0), 0)
    if vectors and math.prod(int(sch.get(loop).extent) for loop in spatial) == 1:
        _by_partial_results(sch, block, vectors, lanes)
        return
    if not spatial:
        return
    *outer, last = spatial
    width = int(sch.get(last).extent)
    step = max(size for size in range(1, lanes + 1) if width % size == 0)
    step = step if 2 * step >= lanes else min(lanes, width)
    if width > step:
        blocks, last = sch.split(last, [None, step])
        outer.append(blocks)
    sch.reorder(*outer, *reduced, last)
    if outer and math.prod(extents) >= SMALL:
        sch.parallel(sch.fuse(*outer))
    if step > 1:
        sch.vectorize(last)
    if reduced:
        sch.decompose_reduction(block, reduced[0])


def _by_partial_results(sch: Any, block: Any, vectors: int, lanes: int) -> None:
    """Reduce everything to one element: to so many vectors of partial results in registers, and these at last.

    As it stands LLVM writes such a loop out, and may take a quarter of a minute for it. What reads the result, one element by
    no loop, gets a loop of one: rfactor loses sight of its block where another stands beside it bare.
    """
    for other in sch.get_child_blocks(sch.get_sblock("root")):
        if not sch.get_loops(other):
            sch.add_unit_loop(other)
    _, partial = sch.split(sch.fuse(*sch.get_loops(block)), [None, vectors * lanes])
    results = sch.rfactor(partial, 0)
    sch.set_scope(results, 0, "local")
    step, partial = sch.get_loops(results)
    vector, lane = sch.split(partial, [None, lanes])
    sch.unroll(vector)
    sch.vectorize(lane)
    sch.decompose_reduction(results, step)
