"""GPU schedules without a search: every function gets a valid one, and none may be left for the host.

Convs and dense layers come here scheduled (`kernels`). Of the rest, what computes each output from few inputs
(elementwise, pooling, concatenation, resizing) takes one thread an output, `per_output`; sums over many, and matrix
products of two activations, take dlight's rules.

TVM compiles a function without thread bindings for the host and says nothing; the model would then read GPU memory from
the CPU. `unbound` finds such functions, and `schedule_gpu` refuses them.
"""

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import dlight
from tvm.tirx.analysis import undefined_vars

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.conv.scheduled import REDUCED, SCHEDULED, SPATIAL
from reparam_compiler.lowering.gpu.tensor_cores import cheap_stack_frames

THREADS = 256
WINDOW = 64  # terms of a sum or maximum that one thread takes alone
ROW = 16 * THREADS  # outputs that the fused axes of a grid row have at least
MOST_BLOCKS = 65535  # along the grid's second axis
WIDTHS = {"float32": 4, "float16": 4}  # outputs that one thread takes


def schedule_gpu(module: Any) -> Any:
    """A schedule for every PrimFunc of `module` that has none.

    Raises: LoweringError naming the functions that no rule bound to threads.
    """
    for variable, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc) and not (func.attrs and func.attrs.get(SCHEDULED)):
            scheduled = per_output(func)
            if scheduled is not None:
                module.update_func(variable, scheduled)
    rules = dlight.ApplyDefaultSchedule(
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    )
    with cheap_stack_frames():  # dlight imports the tensor intrinsics for a large product in float16
        module = rules(module)
    if left := unbound(module):
        raise LoweringError(
            f"{', '.join(left)}: no GPU schedule rule binds it to threads, so it would run on the host; "
            "expected thread bindings in every kernel. Compile for llvm, or rewrite the op in the model"
        )
    return module


def per_output(func: Any) -> Any:
    """The function with one thread an output, or None where that is not what it needs.

    It is not where a thread would sum more than `WINDOW` terms, a shape is symbolic, or a block is opaque (sorting, calls).
    """
    sch = tvm.s_tir.Schedule(func)
    for block in _blocks(sch):
        try:
            sch.compute_inline(block)
        except tvm.s_tir.ScheduleError:
            continue
    blocks = _blocks(sch)
    if not blocks or not all(_is_small(sch, block) for block in blocks):
        return None
    for block in blocks:
        _bind_outputs(sch, block)
    return sch.mod["main"].with_attr(SCHEDULED, True)


def unbound(module: Any) -> list[str]:
    """The PrimFuncs of `module` that compute something outside every loop bound to GPU threads."""
    return [
        str(variable.name_hint)
        for variable, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and not _is_bound(func)
    ]


def _blocks(sch: Any) -> list[Any]:
    """The blocks of a function; none where it is a call, which has no root block."""
    try:
        return list(sch.get_child_blocks(sch.get_sblock("root")))
    except tvm.s_tir.ScheduleError:
        return []


def _is_small(sch: Any, block: Any) -> bool:
    loops, axes = sch.get_loops(block), sch.get(block).iter_vars
    extents = [sch.get(loop).extent for loop in loops]
    if len(loops) != len(axes) or not all(isinstance(extent, tirx.IntImm) for extent in extents):
        return False
    if not {int(axis.iter_type) for axis in axes} <= {SPATIAL, REDUCED} or not sch.get(block).writes:
        return False
    terms = [int(extent) for extent, axis in zip(extents, axes, strict=True) if int(axis.iter_type) == REDUCED]
    return math.prod(terms) <= WINDOW and len(terms) < len(axes)


def _bind_outputs(sch: Any, block: Any) -> None:
    kinds = [int(axis.iter_type) for axis in sch.get(block).iter_vars]
    loops = sch.get_loops(block)
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == SPATIAL]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == REDUCED]
    width = 1 if reduced else _vector_width(sch, block, spatial[-1])
    sch.reorder(*spatial, *reduced)
    outer = _outer_axes([int(sch.get(loop).extent) for loop in spatial])
    if outer:
        sch.bind(sch.fuse(*spatial[:outer]), "blockIdx.y")
    grid, thread, lane = sch.split(sch.fuse(*spatial[outer:]), [None, THREADS, width])
    sch.bind(grid, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if width > 1:
        sch.vectorize(lane)
    if reduced:
        sch.decompose_reduction(block, reduced[0])


def _outer_axes(extents: Sequence[int]) -> int:
    """How many leading axes make a grid axis of their own, so that the rest still fills whole blocks of threads.

    Fewer divisions of an index; and TVM fails on the constants that it makes of an index fused from all axes of a large
    resized image (its literals exceed int32).
    """
    for count in range(len(extents) - 1, 0, -1):
        if math.prod(extents[count:]) >= ROW and math.prod(extents[:count]) <= MOST_BLOCKS:
            return count
    return 0


def _vector_width(sch: Any, block: Any, last: Any) -> int:
    """How many outputs of a row a thread takes: up to 16 bytes, where the row divides so and every operand is read in a row.

    A vector gathered from scattered places is code that TVM gets wrong for 16-bit floats.
    """
    node = sch.get(block)
    axis = node.iter_vars[-1].var
    dtypes = {str(region.source.dtype) for region in (*node.reads, *node.writes)}
    body = str(node.body)
    if len(dtypes) > 1 or dtypes.isdisjoint(WIDTHS) or "if_then_else" in body or "Select" in body:
        return 1
    if not all(_is_in_a_row(region.region, axis) for region in (*node.reads, *node.writes)):
        return 1
    width = WIDTHS[dtypes.pop()]
    while int(sch.get(last).extent) % width:
        width //= 2
    return width


def _is_in_a_row(region: Sequence[Any], axis: Any) -> bool:
    """Whether neighbours along `axis` are neighbours in a buffer, or one element."""
    *outer, last = [each.min for each in region] or [tirx.IntImm("int32", 0)]
    depends = [axis in undefined_vars(index) for index in (*outer, last)]
    return not any(depends) or (not any(depends[:-1]) and bool(last.same_as(axis)))


def _is_bound(func: Any) -> bool:
    sch = tvm.s_tir.Schedule(func)
    blocks = _blocks(sch)
    return bool(blocks) and all(
        any(sch.get(loop).thread_binding is not None for loop in sch.get_loops(block)) for block in blocks
    )
