"""Relax passes that bring a model into the layout of the kernels: Relax in, Relax out.

    simplify         batch norms and constants folded, what inference does not need decomposed
    channels_last    NCHW model -> NHWC inside, transposes only at the borders

TVM's ConvertLayout does most of it, but puts transposes round the elementwise ops that it does not know (clip and
leaky_relu among them); `_SinkTransposes` moves them through:  f(transpose(x)) = transpose(f(x)). TVM's FoldConstant
compiles a function for every constant that it folds (seconds for a net's weights); `_FoldInNumpy` leaves it little to do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import GenericConst
from tvm.ir.transform import Sequential
from tvm.relax.expr_functor import PyExprMutator, mutator

ANY_LAYOUT = frozenset({"relax.clip", "relax.nn.leakyrelu", "relax.nn.gelu", "relax.nn.gelu_tanh", "relax.erf"})
TRANSPOSE = "relax.permute_dims"


FOLDABLE: dict[str, Callable[..., Any]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.sqrt": np.sqrt,
    "relax.rsqrt": lambda x: 1 / np.sqrt(x),
    "relax.negative": np.negative,
}


def simplify(module: Any) -> Any:
    """Decompose what inference does not need, fold batch norms into convs and constants into constants."""
    batch_norms = Sequential(
        [
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldBatchnormToConv2D(),
            relax.transform.DecomposeOpsForInference(),
        ]
    )
    return _folded(batch_norms(_folded(module)))


def channels_last(module: Any) -> Any:
    """NHWC inside: every conv2d reads and writes NHWC, its weight is `O kh kw Ig`, and what lies between follows."""
    module = relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})(module)
    module["main"] = _SinkTransposes(module).visit_expr(module["main"])
    return _folded(module)


def _folded(module: Any) -> Any:
    module = module.clone()
    module["main"] = _FoldInNumpy(module).visit_expr(module["main"])
    return Sequential(
        [
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldConstant(),
            relax.transform.EliminateCommonSubexpr(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)


def op_name(expr: Any) -> str:
    """The name of the op that a Relax call calls, or nothing for any other expression."""
    return str(getattr(getattr(expr, "op", None), "name", "")) if isinstance(expr, relax.Call) else ""


@mutator
class _FoldInNumpy(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Folds the arithmetic and the moves of constants that importers and batch norms leave behind."""

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        if name in {TRANSPOSE, "relax.reshape"}:
            array, folded = self._array(call.args[0]), None
            if array is not None and name == TRANSPOSE:
                folded = np.transpose(array, None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes])
            elif array is not None and isinstance(call.args[1], relax.ShapeExpr):
                sizes = list(call.args[1].values)
                folded = array.reshape([int(n) for n in sizes]) if all(isinstance(n, tirx.IntImm) for n in sizes) else None
        else:
            arrays = [self._array(arg) for arg in call.args] if name in FOLDABLE else [None]
            folded = None if any(array is None for array in arrays) else FOLDABLE[name](*arrays)
        return call if folded is None else relax.const(np.ascontiguousarray(folded), str(folded.dtype))

    def _array(self, operand: Any) -> Any:
        bound = self.builder_.lookup_binding(operand) if isinstance(operand, relax.Var) else operand
        return bound.value.numpy() if isinstance(bound, GenericConst) else None


@mutator
class _SinkTransposes(PyExprMutator):  # type: ignore[misc, unused-ignore]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        if name not in ANY_LAYOUT and name != TRANSPOSE:
            return call
        source = self._transposed(call.args[0])
        if source is None:
            return call
        inner, axes = source.args[0], [int(axis) for axis in source.attrs.axes]
        if name == TRANSPOSE:
            both = [axes[int(axis)] for axis in call.attrs.axes]
            return inner if both == sorted(both) else relax.op.permute_dims(inner, both)
        moved = self.builder_.emit(relax.Call(call.op, [inner, *call.args[1:]], call.attrs))
        return relax.op.permute_dims(moved, axes)

    def _transposed(self, operand: Any) -> Any:
        bound = self.builder_.lookup_binding(operand) if isinstance(operand, relax.Var) else None
        return bound if bound is not None and op_name(bound) == TRANSPOSE and bound.attrs.axes is not None else None
