"""Quotients of positions that are counted backwards, by those that are counted forwards: TVM 0.27 takes the former for others.

    (5 - i) // 2   --FlattenBuffer-->   2 + i // -2          of i = 1 that is 1; the quotient is 2

    (k - t) // m   =   q - (t + m - 1 - r) // m              where k = q m + r and 0 <= r < m
    (k - t) %  m   =   m - 1 - (t + m - 1 - r) % m

So what was interleaved, and then flipped, was read at other places, some of them outside its buffer.
"""

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import tvm_ffi
from tvm import ir, sym, tirx
from tvm.s_tir import SBlock


def counted_forwards(module: Any) -> Any:
    """The module; its kernels divide no position that falls while the variables of their loops rise."""
    for variable, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc):
            module.update_func(variable, func.with_body(_counted_forwards(func.body)))
    return module


def _counted_forwards(body: Any) -> Any:
    analyzer = sym.Analyzer()

    def bind_loop(loop: Any) -> None:
        analyzer.bind(loop.loop_var, ir.Range.from_min_extent(loop.min, loop.extent))

    def bind_axes(block: Any) -> None:
        for axis in block.iter_vars:
            analyzer.bind(axis.var, axis.dom)

    def quotient(node: Any) -> Any:
        if (at := _falling(node, analyzer)) is None:
            return node
        whole, forwards = at
        return analyzer.simplify(whole - tirx.floordiv(forwards, node.b))

    def remainder(node: Any) -> Any:
        if (at := _falling(node, analyzer)) is None:
            return node
        return analyzer.simplify(node.b - 1 - tirx.floormod(at[1], node.b))

    tvm_ffi.structural_walk(body, ((tirx.For, bind_loop), (SBlock, bind_axes)))
    return tvm_ffi.structural_map(body, ((tirx.FloorDiv, quotient), (tirx.FloorMod, remainder)))


def _falling(node: Any, analyzer: sym.Analyzer) -> tuple[int, Any] | None:
    """Of (k - t) // m, or its remainder: q, and t + m - 1 - r; None where another dividend or divisor is there."""
    if not isinstance(node.b, tirx.IntImm) or node.b.value < 2 or all(sign > 0 for sign, _ in _terms(node.a)):
        return None
    constant, falling, by = 0, list[Any](), int(node.b.value)
    for sign, term in _terms(analyzer.simplify(node.a)):
        if isinstance(term, tirx.IntImm):
            constant += sign * int(term.value)
        elif sign < 0:
            falling.append(term)
        else:
            return None
    whole, rest = divmod(constant, by)
    return whole, reduce(add, falling, tirx.const(by - 1 - rest, node.b.ty.dtype))


def _terms(value: Any, sign: int = 1) -> Iterator[tuple[int, Any]]:
    """The terms of a sum with their signs."""
    if isinstance(value, tirx.Add | tirx.Sub):
        yield from _terms(value.a, sign)
        yield from _terms(value.b, sign if isinstance(value, tirx.Add) else -sign)
    elif isinstance(value, tirx.Mul) and isinstance(value.b, tirx.IntImm) and value.b.value < 0:
        yield -sign, value.a * -value.b
    else:
        yield sign, value
