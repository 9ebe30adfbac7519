"""Relax passes that bring a model into the layout of the kernels: Relax in, Relax out.

    simplify         batch norms and constants folded, what inference does not need decomposed
    channels_last    NCHW model -> NHWC inside, transposes only at the borders

TVM's ConvertLayout does most of it, but puts transposes round the elementwise ops that it does not know (clip and
leaky_relu among them); `_SinkTransposes` moves them through:  f(transpose(x)) = transpose(f(x)).
"""

from typing import Any

from tvm import relax
from tvm.ir.transform import Sequential
from tvm.relax.expr_functor import PyExprMutator, mutator

ANY_LAYOUT = frozenset({"relax.clip", "relax.nn.leakyrelu", "relax.nn.gelu", "relax.nn.gelu_tanh", "relax.erf"})
TRANSPOSE = "relax.permute_dims"


def simplify(module: Any) -> Any:
    """Decompose what inference does not need, fold batch norms into convs and constants into constants."""
    return Sequential(
        [
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldConstant(),
            relax.transform.FoldBatchnormToConv2D(),
            relax.transform.DecomposeOpsForInference(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.EliminateCommonSubexpr(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)


def channels_last(module: Any) -> Any:
    """NHWC inside: every conv2d reads and writes NHWC, its weight is `O kh kw Ig`, and what lies between follows."""
    module = relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})(module)
    module["main"] = _SinkTransposes(module).visit_expr(module["main"])
    return Sequential(
        [
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldConstant(),
            relax.transform.EliminateCommonSubexpr(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)


def op_name(expr: Any) -> str:
    """The name of the op that a Relax call calls, or nothing for any other expression."""
    return str(getattr(getattr(expr, "op", None), "name", "")) if isinstance(expr, relax.Call) else ""


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
