"""Batch norms that no conv takes in, in three operations an element; Relax in, Relax out.

batch_norm(x) = (x - mean) * (g / sqrt(var + e)) + b         the difference first: where |mean| is large nothing is lost
"""

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.epilogues import constant_of, sizes_of


def with_scales(module: Any) -> Any:
    """The module with its batch norms of constant statistics as on the right; the others as they are."""
    module = module.clone()
    module["main"] = _Scales(module).visit_expr(module["main"])
    return module


@mutator
class _Scales(PyExprMutator):  # type: ignore[misc, unused-ignore]
    def visit_tuple_getitem_(self, item: Any) -> Any:
        item = super().visit_tuple_getitem_(item)
        norm = self.builder_.lookup_binding(item.tuple_value) if isinstance(item.tuple_value, relax.Var) else item.tuple_value
        if item.index != 0 or op_name(norm) != "relax.nn.batch_norm" or bool(norm.attrs.training):
            return item
        data, *parameters = norm.args
        sizes, arrays = sizes_of(data), [constant_of(parameter) for parameter in parameters]
        if sizes is None or any(array is None for array in arrays):
            return item
        gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays)
        scale = (gamma if norm.attrs.scale else 1.0) / np.sqrt(variance + float(norm.attrs.epsilon))
        shape = [1] * len(sizes)
        shape[int(norm.attrs.axis)] = len(mean)
        dtype = str(data.ty.dtype)
        shift, factor, bias = (relax.const(array.reshape(shape).astype(dtype), dtype) for array in (mean, scale, beta))
        emit = self.builder_.emit
        scaled = emit(relax.op.multiply(emit(relax.op.subtract(data, shift)), factor))
        return relax.op.add(scaled, bias) if norm.attrs.center else scaled
