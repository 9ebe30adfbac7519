"""What sums float16 sums it in float32 on a CPU, between casts; Relax in, Relax out.

    conv2d(x, W)    becomes    astype(conv2d(astype(x, float32), W), float16)          x, W: float16

A CPU multiplies no float16: TVM's loops convert each element at each multiplication, one by one, and round each partial sum,
so that a mean over some thousands of elements is off by hundredths. Torch and ONNX Runtime sum in float32 and round once, as is
done here. What lies between stays in float16, with its range.
"""

from typing import Any

from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.relax.canonicalize import op_name

SPATIAL = ("conv", "avg_pool", "adaptive_avg_pool")
NORMS = ("softmax", "log_softmax", "layer_norm", "group_norm", "instance_norm", "rms_norm")
SUMS = frozenset(
    [
        *(f"relax.{name}" for name in ("matmul", "sum", "mean", "variance", "std", "cumsum")),
        *(f"relax.nn.{name}{rank}d" for name in SPATIAL for rank in (1, 2, 3)),
        *(f"relax.nn.conv{rank}d_transpose" for rank in (1, 2, 3)),
        *(f"relax.nn.{name}" for name in NORMS),
    ]
)
"""Ops that add up elements."""


def sums_in_single(module: Any) -> Any:
    """The module whose sums of float16 are computed in float32."""
    module = module.clone()
    module["main"] = _InSingle(module).visit_expr(module["main"])
    return module


@mutator
class _InSingle(PyExprMutator):  # type: ignore[misc, unused-ignore]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if op_name(call) not in SUMS or str(call.ty.dtype) != "float16":
            return call
        single = self.builder_.emit(relax.Call(call.op, [self._widened(operand) for operand in call.args], call.attrs))
        return relax.op.astype(single, "float16") if str(single.ty.dtype) == "float32" else call

    def _widened(self, operand: Any) -> Any:
        bound = self.builder_.lookup_binding(operand) if isinstance(operand, relax.Var) else operand
        if isinstance(bound, GenericConst):
            return relax.const(bound.value.numpy().astype("float32"), "float32")
        return self.builder_.emit(relax.op.astype(operand, "float32"))
