"""Products of two activations, as those of attention: C[b] = A[b] B[b], in tiles of sums that stay in registers.

    for batch and column tile (parallel), row tile:  sums[mr, nr] = 0
        for k:  sums[i, :] += A[row + i, k] B[k, column : column + nr]
        C[tile] = sums

The last tile of a direction starts where it still fits and computes a few elements anew: no tile needs a guard.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx
from tvm.ir import Op
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from reparam_compiler.lowering.conv.choice import FMA_LATENCY
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.relax.epilogues import sizes_of

DTYPES = ("float32", "float64")
SMALL = 65536  # multiply-adds below which starting threads costs more than it saves


@dataclass(frozen=True, slots=True)
class Product:
    """batch times `rows x depth` by `depth x columns`."""

    batch: int
    rows: int
    depth: int
    columns: int

    @staticmethod
    def of(left: tuple[int, ...], right: tuple[int, ...]) -> "Product | None":
        """The product of tensors of these sizes; none where one of them is repeated for the batch of the other."""
        if min(len(left), len(right)) < 2 or 0 in (*left, *right):
            return None
        if len(right) == 2:
            return Product(1, math.prod(left[:-1]), left[-1], right[-1])
        return Product(math.prod(left[:-2]), left[-2], left[-1], right[-1]) if left[:-2] == right[:-2] else None


def product_legalizations(unit: VectorUnit) -> dict[str, Callable[[Any, Any], Any]]:
    """For `relax.transform.LegalizeOps`: of floats, where a row of the result is a vector or more; TVM's own elsewhere."""

    def matmul(builder: Any, call: Any) -> Any:
        left, right = map(sizes_of, call.args)
        product = None if left is None or right is None else Product.of(left, right)
        dtype = str(call.ty.dtype)
        same = all(str(each.ty.dtype) == dtype for each in call.args)
        if product is None or dtype not in DTYPES or not same or product.columns < unit.lanes(dtype):
            return Op.get("relax.matmul").get_attr("FLegalize")(builder, call)
        return _called(builder, call, product, dtype, unit)

    return {"relax.matmul": matmul}


def product_tile(product: Product, lanes: int, registers: int) -> tuple[int, int]:
    """Rows and columns of the tile that takes the fewest cycles: multiply-adds and loads, two a cycle, over all tiles."""

    def cycles(tile: tuple[int, int]) -> float:
        rows, vectors = tile
        tiles = math.ceil(product.rows / rows) * math.ceil(product.columns / (vectors * lanes))
        return tiles * max(rows * vectors / 2, (rows + vectors) / 2, FMA_LATENCY)

    fitting = [
        (rows, vectors)
        for rows, vectors in itertools.product(range(1, min(product.rows, 8) + 1), range(1, 5))
        if rows * vectors + vectors + 1 <= registers and vectors * lanes <= product.columns
    ]
    rows, vectors = min(fitting, key=cycles)
    return rows, vectors * lanes


def _called(builder: Any, call: Any, product: Product, dtype: str, unit: VectorUnit) -> Any:
    """The call of a kernel with one axis of batches."""
    left = (product.batch, product.rows, product.depth)
    right = (product.batch, product.depth, product.columns)
    out = (product.batch, product.rows, product.columns)
    lanes = unit.lanes(dtype)
    tile = product_tile(product, lanes, unit.registers)

    def kernel(a: Any, b: Any) -> Any:
        def body(inputs: Any, outputs: Any) -> Any:
            return _written(product, tile, lanes, *inputs, *outputs)

        return te.extern([out], [a, b], body, name="matmul", dtype=dtype)

    shaped = [builder.emit(relax.op.reshape(each, size)) for each, size in zip(call.args, (left, right), strict=True)]
    result = builder.emit(builder.call_te(kernel, *shaped, primfunc_name_hint="matmul"))
    return relax.op.reshape(result, call.ty.shape)


def _written(product: Product, tile: tuple[int, int], lanes: int, a: Any, b: Any, c: Any) -> Any:
    """The statements of the kernel."""
    rows, columns = tile
    across, down = math.ceil(product.columns / columns), math.ceil(product.rows / rows)
    macs = product.batch * product.rows * product.depth * product.columns
    with IRBuilder() as statements:
        with (T.parallel if macs >= SMALL else T.serial)(0, product.batch * across) as place:
            batch, column = place // across, tirx.min(place % across * columns, product.columns - columns)
            with T.serial(0, down) as step:
                row = tirx.min(step * rows, product.rows - rows)
                sums = T.alloc_buffer((rows * columns,), c.dtype, scope="local", layout=None)

                def each(body: Callable[[Any, Any, Any], None]) -> None:
                    with T.unroll(0, rows) as i, T.unroll(0, columns // lanes) as v, T.vectorized(0, lanes) as lane:
                        body(i, v * lanes + lane, i * columns + v * lanes + lane)

                each(lambda i, j, at: T.buffer_store(sums, tirx.const(0, c.dtype), [at]))
                with T.serial(0, product.depth) as k:
                    each(lambda i, j, at: T.buffer_store(sums, sums[at] + a[batch, row + i, k] * b[batch, k, column + j], [at]))
                each(lambda i, j, at: T.buffer_store(c, sums[at], [batch, row + i, column + j]))
        return statements.get()
