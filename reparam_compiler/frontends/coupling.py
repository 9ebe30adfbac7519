"""Coupling models that follow from shapes alone, for both frontends: what pruning sees in a call that moves or multiplies.

reshape((2, 16, "h"), (2, 4, 4, "h"))      Reshape((2, 4, 4, -1))
matmul(4, 2)                               Einsum("abyz", "zx", "abyx")

Each raises `Unsupported` where there is none.
"""

from collections.abc import Sequence

from reparam_compiler.frontends.base import Unsupported
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, TensorType


def shape_of(result: TensorType | None) -> tuple[Dim, ...]:
    """The shape of a value, which must be known."""
    if result is None:
        raise Unsupported("a value of no known shape")
    return result.shape


def elementwise(shape: Sequence[Dim]) -> ops.Slicewise:
    """A function of the elements at the same place, which gives a value of this shape."""
    return ops.Slicewise(tuple(range(len(shape))))


def reshape(own: Sequence[Dim], shape: Sequence[Dim]) -> ops.Reshape:
    """From a shape to the one that comes out: 0 for an open size of the same axis, -1 for one that is left.

    >>> reshape(("n", 16, 5), ("n", 4, "h"))
    Reshape(shape=(0, 4, -1))
    """
    sizes = [
        size if isinstance(size, int) else 0 if size is not None and tuple(own[axis : axis + 1]) == (size,) else -1
        for axis, size in enumerate(shape)
    ]
    if sizes.count(-1) > 1:
        raise Unsupported("a reshape to several open sizes")
    return ops.Reshape(tuple(sizes))


def expand(own: Sequence[Dim], shape: Sequence[Dim]) -> ops.Expand:
    """From a shape to one by numbers; an open size that x has, and that of a batch, stays as it is.

    >>> expand((16, 1), ("n", 16, 5))
    Expand(shape=(-1, 16, 5))
    """
    new = len(shape) - len(own)
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if any(size == -1 and axis and (axis < new or own[axis - new] != shape[axis]) for axis, size in enumerate(sizes)):
        raise Unsupported("an expansion to an open size")
    return ops.Expand(tuple(sizes))


def matmul(left: int, right: int) -> ops.Einsum:
    """A product of matrices of these ranks, the axes before the last two broadcast from the last.

    >>> matmul(2, 3)
    Einsum(a='yz', b='azx', out='ayx')
    """
    if min(left, right) < 2:
        raise Unsupported("a product with a vector")
    batch = "abcdefgh"[: max(left, right) - 2]
    first, second = (batch[len(batch) - rank + 2 :] for rank in (left, right))
    return ops.Einsum(first + "yz", second + "zx", batch + "yx")


def einsum(equation: str) -> ops.Einsum:
    """An equation of two operands, with a letter for each axis and no letter twice in one of them.

    >>> einsum("bik, bkj -> bij")
    Einsum(a='bik', b='bkj', out='bij')
    """
    terms, arrow, out = equation.replace(" ", "").partition("->")
    sides = terms.split(",")
    if len(sides) != 2 or not arrow or not all(side.isalpha() and len(set(side)) == len(side) for side in sides):
        raise Unsupported(f"einsum of {equation}")
    return ops.Einsum(sides[0], sides[1], out)
