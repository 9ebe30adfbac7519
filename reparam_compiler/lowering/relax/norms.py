"""Norms as arithmetic; Relax in, Relax out.

batch_norm(x) = (x - mean) * (g / sqrt(var + e)) + b         of constant statistics; the difference first: where |mean| is large
                                                             nothing is lost
layer_norm(x) = (x - mean) / sqrt(var + e) g + b             over several axes ConvertLayout permutes the axes and not g and b
group_norm, instance_norm likewise                           of float64 TVM has no kernels of these, nor of layer_norm
"""

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.epilogues import constant_of, sizes_of

LAYERS, GROUPS, INSTANCES = (f"relax.nn.{kind}_norm" for kind in ("layer", "group", "instance"))


def without_missing_kernels(module: Any) -> Any:
    """The module with each norm that TVM has no kernel of, or misreads, as on the right."""
    module = module.clone()
    module["main"] = _Arithmetic(module).visit_expr(module["main"])
    return module


def with_scales(module: Any) -> Any:
    """The module with its batch norms of constant statistics as on the right; the others as they are."""
    module = module.clone()
    module["main"] = _Scales(module).visit_expr(module["main"])
    return module


@mutator
class _Arithmetic(PyExprMutator):  # type: ignore[misc, unused-ignore]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        sizes = sizes_of(call.args[0]) if name in (LAYERS, GROUPS, INSTANCES) else None
        if sizes is None:
            return call
        data, rank, dtype = call.args[0], len(sizes), str(call.ty.dtype)
        axes = sorted(int(axis) % rank for axis in call.attrs.axes)
        misread = name == LAYERS and dtype == "float32" and axes == list(range(rank - len(axes), rank)) and len(axes) > 1
        if dtype != "float64" and not misread:
            return call
        scaled = axes if name == LAYERS else [int(call.attrs.channel_axis) % rank]
        shape = [size if axis in scaled else 1 for axis, size in enumerate(sizes)]
        if name == GROUPS:
            normal = self._by_groups(data, sizes, scaled[0], axes, call.attrs)
        else:
            normal = self._normal(data, axes, call.attrs.epsilon)
        return self._scaled(call, normal, shape)

    def _by_groups(self, data: Any, sizes: tuple[int, ...], channels: int, axes: list[int], attrs: Any) -> Any:
        """As `_normal`, over the channels of each group as well."""
        emit, groups = self.builder_.emit, int(attrs.num_groups)
        apart = emit(relax.op.reshape(data, [*sizes[:channels], groups, sizes[channels] // groups, *sizes[channels + 1 :]]))
        reduced = [channels + 1, *(axis + (axis > channels) for axis in axes)]
        return emit(relax.op.reshape(self._normal(apart, reduced, attrs.epsilon), sizes))

    def _normal(self, data: Any, axes: list[int], epsilon: Any) -> Any:
        """The data with mean 0 and variance 1 over the axes."""
        emit, dtype = self.builder_.emit, str(data.ty.dtype)
        centred = emit(relax.op.subtract(data, emit(relax.op.mean(data, axes, keepdims=True))))
        variance = emit(relax.op.mean(emit(relax.op.multiply(centred, centred)), axes, keepdims=True))
        least = relax.const(np.full((1,) * len(data.ty.shape.values), float(epsilon), dtype), dtype)
        return emit(relax.op.divide(centred, emit(relax.op.sqrt(emit(relax.op.add(variance, least))))))

    def _scaled(self, call: Any, normal: Any, shape: list[int]) -> Any:
        """What a norm does behind its division, with the scale and the shift in that shape."""
        (_, scale, shift), emit = call.args, self.builder_.emit
        if call.attrs.scale:
            normal = emit(relax.op.multiply(normal, emit(relax.op.reshape(scale, shape))))
        return relax.op.add(normal, emit(relax.op.reshape(shift, shape))) if call.attrs.center else normal


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
