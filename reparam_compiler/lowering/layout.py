"""Relax passes that bring a model into the layout of the kernels: Relax in, Relax out.

    simplify         batch norms and constants folded, what inference does not need decomposed
    channels_last    NCHW model -> NHWC inside, transposes only at the borders

TVM's ConvertLayout does it, but puts transposes round the ops that it does not know, clip and leaky_relu among them;
`_Respell` says those in ops that it knows. TVM's FoldConstant compiles a function for every constant that it folds (seconds for
a net's weights); `_FoldInNumpy` leaves it little to do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import GenericConst
from tvm.ir.transform import Sequential
from tvm.relax.expr_functor import PyExprMutator, mutator

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
    folding = [relax.transform.FoldBatchnormToConv2D()] if _is_single(module) else []
    batch_norms = Sequential([relax.transform.CanonicalizeBindings(), *folding, relax.transform.DecomposeOpsForInference()])
    return _folded(batch_norms(_folded(module)))


def _is_single(module: Any) -> bool:
    """Whether every input is float32: TVM's folding adds a float32 epsilon to the variance, and fails on another dtype."""
    return all(str(parameter.ty.dtype) == "float32" for parameter in module["main"].params)


def channels_last(module: Any) -> Any:
    """NHWC inside: every conv2d reads and writes NHWC, its weight is `O kh kw Ig`, and what lies between follows."""
    module = module.clone()
    module["main"] = _Respell(module).visit_expr(module["main"])
    convert = relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})
    return _folded(Sequential([relax.transform.CanonicalizeBindings(), convert])(module))


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


COMMUTATIVE = frozenset(f"relax.{name}" for name in ("add", "multiply", "maximum", "minimum"))
BROADCAST = COMMUTATIVE | {"relax.subtract", "relax.divide", "relax.power"}


@mutator
class _Respell(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Images by ops that ConvertLayout knows; numbers with four axes and on the right, for the layout is that of the left side.

    clip(x, a, b) = min(max(x, a), b);   leaky_relu(x) = prelu(x) with one slope for all channels;   a - x = -1 x + a.
    """

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name, ty = op_name(call), call.ty
        if name == "relax.squeeze" and call.attrs.axis is not None:  # of a negative axis, ConvertLayout takes endless memory
            rank = len(call.args[0].ty.shape)
            return relax.op.squeeze(call.args[0], [int(axis) % rank for axis in call.attrs.axis])
        if not isinstance(ty, relax.TensorType) or ty.shape is None or len(ty.shape) != 4:
            return call
        if name == "relax.clip":
            data = call.args[0]
            for op, bound in zip((relax.op.maximum, relax.op.minimum), call.args[1:], strict=True):
                if np.isfinite(value := float(bound.value)):
                    data = self.builder_.emit(op(data, _number(value, ty.dtype)))
            return data
        if name == "relax.nn.leakyrelu" and isinstance(channels := ty.shape[1], tirx.IntImm):
            slopes = np.full(int(channels), float(call.attrs.alpha), str(ty.dtype))
            return relax.op.nn.prelu(call.args[0], relax.const(slopes), axis=1)
        if name in BROADCAST:
            left, right = map(_of_four_axes, call.args)
            if isinstance(left, GenericConst) and name in COMMUTATIVE:
                left, right = right, left
            elif isinstance(left, GenericConst) and name == "relax.subtract":
                negative = self.builder_.emit(relax.op.multiply(right, _number(-1.0, ty.dtype)))
                return relax.op.add(negative, left)
            return relax.Call(call.op, [left, right], call.attrs)
        return call


def _number(value: float, dtype: Any) -> Any:
    return relax.const(np.full((1, 1, 1, 1), value, str(dtype)))


def _of_four_axes(operand: Any) -> Any:
    array = operand.value.numpy() if isinstance(operand, GenericConst) else None
    return operand if array is None or array.ndim else _number(array.item(), array.dtype)
