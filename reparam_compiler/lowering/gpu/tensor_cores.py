"""Conv and dense layers in float16 on tensor cores: the implicit GEMM of `conv`, sums in float32.

    for block of rows x columns (x, y), group and piece of k (z);  each warp has thread_rows x thread_columns of it
        for k / depth:   shared P[rows, depth] <- x;   shared W[depth, columns] <- weights        one step ahead, in registers
            for k / 16:  A, B fragments <- shared;   sums[16, 16] += A B                           mma on float32 accumulators
        shared Z[rows, columns] <- sums;   Y[m, n] = float16(epilogue(Z))

The arithmetic is a schedule first and intrinsics last: with `intrinsics=False` the same loops are left as plain
multiplications, which a CPU can run. That is how the tests check values where there is no GPU. TVM 0.27 has fragments for
float16 and int8 only: no TF32, so float32 never takes this path.
"""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import tvm

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.conv.scheduled import finished
from reparam_compiler.lowering.gpu.conv import declare_conv, gathered_width, has_block, stage, vector_width
from reparam_compiler.lowering.gpu.tiles import GpuTile

FRAGMENT = 16  # rows, columns and depth of one tensor-core product
WARP = 32
WIDTH = 8  # float16 numbers in the 16 bytes that a thread copies at once
SHARED = "shared.dyn"  # one pool: the sums, written back at the end, take the place of what was staged
SUMS_STRIDE = (64, 20)  # a row of sums is 20 more than a multiple of 64: no two rows of a fragment in one bank, and larger
# than either staged tile, for TVM fails where it would place float32 sums into a larger buffer of float16
INTRINSICS = "tvm.s_tir.tensor_intrin.cuda"


def tensor_conv(shape: ConvShape, tile: GpuTile, epilogue: Sequence[Step]) -> Any:
    """The PrimFunc of a conv in one piece: (x `N H W C`, weights `G K' O'`, operands…) -> `pixels G O/G`, all float16."""
    return finished(scheduled_tensor_conv(declare_conv(shape, tile, epilogue), shape, tile).mod["main"])


def tensor_partial_conv(shape: ConvShape, tile: GpuTile) -> Any:
    """The sums of each piece of k: (x `N H W C`, weights `pieces*G K'/pieces O'`) -> `pieces*G M' O'` in float32."""
    return finished(scheduled_tensor_conv(declare_conv(shape, tile, None), shape, tile).mod["main"])


def scheduled_tensor_conv(func: Any, shape: ConvShape, tile: GpuTile, *, intrinsics: bool = True) -> Any:
    """The schedule of `declare_conv`; without `intrinsics` the fragments are plain loops, for the tests."""
    sch = tvm.s_tir.Schedule(func)
    product = sch.get_sblock("sums")
    outer, warp, step, inner = _split_into_fragments(sch, product, tile)
    _prefetch(sch, step, inner)
    _stage_in_shared(sch, outer, step, shape, tile)
    fragments = []
    for index, scope in ((0, "wmma.matrix_a"), (1, "wmma.matrix_b")):
        fragments.append(sch.cache_read(outer, index, scope))
        sch.compute_at(fragments[-1], inner)
    in_float32 = sch.cache_write(outer, 0, SHARED)
    accumulators = sch.cache_write(outer, 0, "wmma.accumulator")
    sch.reverse_compute_at(accumulators, warp)
    sch.reverse_compute_at(in_float32, warp)
    tiles = [_fragment_loops(sch, block) for block in (*fragments, accumulators)]
    init = sch.get_child_blocks(sch.decompose_reduction(outer, step))[0]
    if intrinsics:
        accumulators = _put_intrinsics_in(sch, tiles, init, product, accumulators)
    sch.storage_align(accumulators, 0, -2, *SUMS_STRIDE)
    _write_back(sch, in_float32, shape)
    return sch


def _split_into_fragments(sch: Any, sums: Any, tile: GpuTile) -> tuple[Any, Any, Any, Any]:
    """Bind blocks and warps of fragments; the block of one fragment, and the loops over warps, steps and fragments of k."""
    z, m, n, k = sch.get_loops(sums)
    m, m_in = sch.split(m, [None, FRAGMENT])
    n, n_in = sch.split(n, [None, FRAGMENT])
    k, k_in = sch.split(k, [None, FRAGMENT])
    sch.reorder(m, n, k, m_in, n_in, k_in)
    outer = sch.blockize(m_in)
    block_m, warp_m, row = sch.split(m, [None, tile.rows // tile.thread_rows, tile.thread_rows // FRAGMENT])
    block_n, warp_n, column = sch.split(n, [None, tile.columns // tile.thread_columns, tile.thread_columns // FRAGMENT])
    step, inner = sch.split(k, [None, tile.depth // FRAGMENT])
    sch.reorder(z, block_m, block_n, warp_m, warp_n, step, inner, row, column)
    warp = sch.fuse(warp_m, warp_n)
    for loop, axis in ((z, "blockIdx.z"), (block_m, "blockIdx.x"), (block_n, "blockIdx.y"), (warp, "threadIdx.y")):
        sch.bind(loop, axis)
    return outer, warp, step, inner


def _stage_in_shared(sch: Any, outer: Any, step: Any, shape: ConvShape, tile: GpuTile) -> None:
    """Patches and weights of one step, copied to shared memory by all threads of a block, through registers."""
    patches, width = sch.get_sblock("patches"), gathered_width(shape)
    sch.set_scope(patches, 0, SHARED)
    sch.transform_layout(patches, ("write", 0), lambda g, m, k, lane: (g, m, k * width + lane))
    staged = sch.cache_read(outer, 1, SHARED)
    for block, loops, lanes in ((patches, 3, width), (staged, 2, WIDTH)):
        sch.compute_at(block, step, preserve_unit_loops=True)
        stage(sch, sch.get_loops(block)[-loops:], [None, tile.workers, WARP, lanes], ("threadIdx.y", "threadIdx.x"))
        sch.storage_align(block, 0, axis=-2, factor=16, offset=8)
        sch.annotate(block, "tirx.manifest_shared_memory_local_stage", 1)
        sch.annotate(block, "double_buffer_scope", 0)


def _put_intrinsics_in(sch: Any, tiles: Sequence[Any], init: Any, product: Any, accumulators: Any) -> Any:
    """Tensor-core instructions for the loops over one fragment; the block that now stores the accumulators."""
    store_name, names = sch.get(accumulators).name_hint, _intrinsics()
    for loop, name in zip(tiles, (names["load_a"], names["load_b"], names["store"]), strict=True):
        sch.tensorize(loop, name)
    sch.tensorize(sch.get_loops(init)[-2], names["init"])
    sch.tensorize(sch.get_loops(product)[-3], names["compute"])
    return sch.get_sblock(f"{store_name}_o")  # an intrinsic takes the block's place, without what was noted on it


def _prefetch(sch: Any, step: Any, inner: Any) -> None:
    """Stage the next step's tiles, through registers, while this step multiplies, and the next fragments likewise.

    The seven parts of a step, in order: both tiles from memory to registers and on to shared memory, then the loop over
    fragments, itself of three: its first loads, its body, its last products. dlight's matmul has the same parts.
    """
    sch.annotate(step, "software_pipeline_order", [0, 3, 1, 4, 5, 2, 6])
    sch.annotate(step, "software_pipeline_stage", [0, 0, 0, 0, 0, 1, 1])
    sch.annotate(inner, "software_pipeline_order", [0, 1, 2])
    sch.annotate(inner, "software_pipeline_stage", [0, 0, 1])


def _fragment_loops(sch: Any, block: Any) -> Any:
    """Cut a block's last two loops into fragments; the loop over one fragment."""
    i, j = sch.get_loops(block)[-2:]
    i, i_in = sch.split(i, [None, FRAGMENT])
    j, j_in = sch.split(j, [None, FRAGMENT])
    sch.reorder(i, j, i_in, j_in)
    sch.unroll(i)
    sch.unroll(j)
    return i_in


def _write_back(sch: Any, in_float32: Any, shape: ConvShape) -> None:
    """The epilogue, from the sums in shared memory; each warp writes what it computed."""
    last, width = in_float32, 4
    if has_block(sch, "out"):
        sch.reverse_compute_inline(sch.get_sblock("out"))
        width = vector_width(shape.group_out, 4)
    fused = sch.fuse(*sch.get_loops(last)[-2:])
    _, thread, lane = sch.split(fused, [None, WARP, width])
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(lane)


def _intrinsics() -> dict[str, str]:
    """The names of TVM's fragment intrinsics for float16 in, float32 sums, and B not transposed."""
    with cheap_stack_frames():
        module = importlib.import_module(INTRINSICS)
    names: dict[str, str] = module.get_wmma_intrin_group(SHARED, SHARED, "float16", "float32", False)
    return names


@contextlib.contextmanager
def cheap_stack_frames() -> Iterator[None]:
    """Leave source lines out of `inspect.stack` in this block.

    TVMScript asks for the stack at each of the 248 intrinsics that a first import of them defines, and reading the source
    of every frame each time takes most of a minute.
    """
    real = inspect.stack

    def without_source(context: int = 1) -> list[inspect.FrameInfo]:
        frame: FrameType | None = sys._getframe(1)
        found = []
        while frame is not None:
            code = frame.f_code
            found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
            frame = frame.f_back
        return found

    inspect.stack = without_source
    try:
        yield
    finally:
        inspect.stack = real
