"""Convs and dense layers of bytes by dot product instructions: four products a lane, added up in 32 bits without saturation.

    sums[p, c]  = -z total[c]                                           z: the zero point of X, total[c]: the sum of U[c]
    sums[p, c] += sum_{r, s, k} sum_{j < 4} X[pixel(p, r, s), 4 k + j] U[c / nr, r, s, k, c mod nr, j]      j: one instruction
    Y[p, c]     = epilogue(sums[p, c])

It is the direct conv (`schedules.py`) whose channels are words of four bytes. An instruction takes unsigned or signed data
(`DotProduct.data`); that of the other kind is moved by 128, with its zero point. The halo holds the zero point. Sums may pass
32 bits on the way: what they come to fits (`relax/quantized.py`), and integers wrap.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm_ffi
from jaxtyping import Shaped
from tvm import te, tirx
from tvm.s_tir import SBlock, TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct, Step, Tile, round_up
from reparam_compiler.lowering.conv.choice import direct_form
from reparam_compiler.lowering.conv.pointwise import epilogue_operands, epilogue_value
from reparam_compiler.lowering.conv.scheduled import finished
from reparam_compiler.lowering.cpu.machine import DotProduct, VectorUnit
from reparam_compiler.lowering.cpu.packing import WORD
from reparam_compiler.lowering.cpu.schedules import scheduled_direct, source_pixel, with_halo

Weights = Shaped[np.ndarray, "..."]
OFFSET = 128
"""Between a signed byte and the unsigned one of the same order."""


def has_dots(shape: ConvShape, unit: VectorUnit) -> bool:
    """Whether a conv of bytes has a kernel here: the channels of a group fill whole words, or there is one group."""
    return unit.dots is not None and (shape.groups == 1 or shape.group_in % WORD == 0)


def words_of(shape: ConvShape) -> ConvShape:
    """The conv of bytes as one of words: what its tile and blocks are chosen by."""
    return replace(shape, channels_in=shape.groups * (round_up(shape.group_in, WORD) // WORD))


def dots_form(shape: ConvShape, unit: VectorUnit) -> Direct:
    """The tile and the blocks of the fewest estimated cycles."""
    return direct_form(words_of(shape), unit)


def offset_of(data: str, unit: VectorUnit) -> int:
    """What is added to the data, and to their zero point, for the instruction."""
    takes = _dots(unit).data
    return {"uint8": OFFSET, "int8": -OFFSET}[takes] if data != takes else 0


def _dots(unit: VectorUnit) -> DotProduct:
    if unit.dots is None:
        raise ValueError("found a vector unit without dot products of bytes")
    return unit.dots


def totals_of(weight: Weights, shape: ConvShape, tile: Tile) -> Weights:
    """The sum of the weights `O kh kw Ig` of each output, as the columns of the tiles lie: `tiles nr`."""
    totals = weight.sum((1, 2, 3), dtype=shape.dtype).reshape(shape.groups, -1)
    padding = tile.column_tiles(shape) * tile.columns - shape.group_out
    return np.pad(totals, [(0, 0), (0, padding)]).reshape(-1)


def dots_conv(shape: ConvShape, data: str, algorithm: Direct, epilogue: Sequence[Step], unit: VectorUnit) -> Any:
    """The PrimFunc: (x `N H W C`, weights `tiles r s k nr 4`, z `1`, start `tiles nr`, …) -> `blocks pixels/blocks G O/G`.

    shape: of dtype int32, that of z, of the start of the sums (-(z + `offset_of`) `totals_of`) and of the sums.
    data: the dtype of x, int8 or uint8.
    """
    func = _declared(shape, data, algorithm, epilogue, unit)
    intrinsic = _registered(_dots(unit), unit.lanes(shape.dtype))
    return finished(scheduled_direct(func, words_of(shape), algorithm, unit, word=WORD, dots=intrinsic))


def _declared(shape: ConvShape, data: str, algorithm: Direct, epilogue: Sequence[Step], unit: VectorUnit) -> Any:
    """The same PrimFunc before its schedule."""
    takes, offset = _dots(unit).data, offset_of(data, unit)
    tile, block, (kh, kw) = algorithm.tile, algorithm.block or shape.pixels, shape.kernel
    rows, columns, per_group = round_up(block, tile.rows), tile.columns, tile.column_tiles(shape)
    words, integer = words_of(shape).group_in, shape.dtype
    x = te.placeholder((shape.batch, shape.height, shape.width, shape.channels_in), data, "x")
    weights = te.placeholder((shape.groups * per_group, kh, kw, words, columns, WORD), "int8", "weights")
    zero = te.placeholder((1,), integer, "zero")
    start = te.placeholder((shape.groups * per_group * columns,), integer, "start")

    def moved(byte: Any) -> Any:  # its highest bit turned
        return byte.astype(takes) ^ tirx.const(np.int8(-OFFSET).view(takes).item(), takes)

    inside = (zero[0] + offset).astype(takes)
    source = with_halo(x, shape, shape.groups * words * WORD, inside, moved if offset else None)
    r, s, k = te.reduce_axis((0, kh), "r"), te.reduce_axis((0, kw), "s"), te.reduce_axis((0, words), "k")
    j = te.reduce_axis((0, WORD), "j")

    def product(b: Any, i: Any, g: Any, c: Any) -> Any:
        n, h, w = source_pixel(b * block + (tirx.min(i, block - 1) if rows != block else i), r, s, shape)
        byte = source[n, h, w, (g * words + k) * WORD + j].astype(integer)
        weight = weights[g * per_group + c // columns, r, s, k, c % columns, j].astype(integer)
        return te.sum(byte * weight, axis=[r, s, k, j])

    sums = te.compute((algorithm.blocks(shape), rows, shape.groups, per_group * columns), product, "sums")
    size = (algorithm.blocks(shape), block, shape.groups, shape.group_out)
    operands = epilogue_operands(shape, epilogue, size)
    out = te.compute(size, lambda *at: epilogue_value(sums[at], shape, epilogue, operands, at), "out")
    func = te.create_prim_func([x, weights, zero, start, *operands, out]).without_attr("global_symbol")
    return _with_start(func, func.params[3], per_group * columns)


def _with_start(func: Any, start: Any, columns: int) -> Any:
    """The PrimFunc whose sums begin at `start` and not at 0: TE has no word for it that a PrimFunc keeps."""

    def started(block: Any) -> Any:
        if block.init is None:
            return block
        *_, group, column = block.init.indices
        store = tirx.BufferStore(block.init.buffer, start[group * columns + column], block.init.indices)
        return SBlock(block.iter_vars, block.reads, block.writes, block.name_hint, block.body, store, block.alloc_buffers)

    return func.with_body(tvm_ffi.structural_map(func.body, (SBlock, started)))


@functools.cache
def _registered(dots: DotProduct, lanes: int) -> str:
    """The name of the intrinsic, among those that TVM's schedules know."""
    name = f"reparam.{dots.intrinsic}"
    TensorIntrin.register(name, _function(dots, lanes, instruction=False), _function(dots, lanes, instruction=True))
    return name


def _function(dots: DotProduct, lanes: int, *, instruction: bool) -> Any:
    """The sums of a vector: as loops, which a schedule compares with its own, or as the instruction."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            x = T.arg("x", T.buffer((WORD,), dots.data, offset_factor=1))
            weights = T.arg("weights", T.buffer((lanes, WORD), "int8", offset_factor=1))
            sums = T.arg("sums", T.buffer((lanes,), "int32", offset_factor=1, scope="local"))
            with T.sblock("root"):
                T.reads(sums[0:lanes], x[0:WORD], weights[0:lanes, 0:WORD])
                T.writes(sums[0:lanes])
                if instruction:
                    _instruction(dots, lanes, x, weights, sums)
                else:
                    _loops(lanes, x, weights, sums)
        return builder.get()


def _loops(lanes: int, x: Any, weights: Any, sums: Any) -> None:
    with T.grid(lanes, WORD) as (lane, byte), T.sblock("update"):
        c, j = T.axis.remap("SR", [lane, byte])
        T.buffer_store(sums, sums[c] + T.cast(x[j], "int32") * T.cast(weights[c, j], "int32"), [c])


def _instruction(dots: DotProduct, lanes: int, x: Any, weights: Any, sums: Any) -> None:
    word = T.reinterpret("int32", x.vload([0], f"{dots.data}x{WORD}"))
    bytes_of = f"int8x{lanes * WORD}"
    operands = (
        sums.vload([0], f"int32x{lanes}"),
        T.reinterpret(bytes_of, T.broadcast(word, lanes)),
        weights.vload([0, 0], bytes_of),
    )
    T.buffer_store(sums, T.call_llvm_pure_intrin(f"int32x{lanes}", dots.intrinsic, *operands), [T.ramp(0, 1, lanes)])
