"""Constants of constants, computed by numpy; Relax in, Relax out.

    add(1, 2)                                  becomes    3
    take(shape_to_tensor(shape_of(x)), 0)      becomes    the batch of x

Importers and batch norms leave them behind: bounds, scales, moves of weights, sizes of tensors of which all are known. TVM's
FoldConstant writes a kernel for every op, constant or not, and compiles one for every constant that it folds (0.05 s each, ten
seconds for a CoaT); this mostly leaves it nothing to do, and then it is left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import GenericConst
from tvm.ir.transform import Sequential
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.moves import PERMUTE, RESHAPE

ARITHMETIC: dict[str, Callable[..., Any]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.sqrt": np.sqrt,
    "relax.rsqrt": lambda x: 1 / np.sqrt(x),
    "relax.negative": np.negative,
    "relax.isnan": np.isnan,
    "relax.less": np.less,
    "relax.where": np.where,
}
OF_ANY_DTYPE = frozenset(f"relax.{name}" for name in ("add", "subtract", "multiply", "negative", "isnan", "less", "where"))
"""Which of them numpy computes as TVM does for integers and truth values, too."""


def _taken(call: Any, array: Any, places: Any) -> Any:
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    count = array.size if axis is None else array.shape[axis]
    return np.take(array, places, axis) if np.all((places >= 0) & (places < count)) else None


MOVES: dict[str, Callable[..., Any]] = {
    PERMUTE: lambda call, x: np.transpose(x, None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]),
    "relax.expand_dims": lambda call, x: np.expand_dims(x, tuple(int(axis) for axis in call.attrs.axis)),
    RESHAPE: lambda _, x, sizes: np.reshape(x, sizes),
    "relax.broadcast_to": lambda _, x, sizes: np.broadcast_to(x, sizes),
    "relax.shape_to_tensor": lambda _, sizes: sizes,
    "relax.take": _taken,
}
"""What moves constants, of the call and its operands; None where the call reads beyond them."""


def folded(module: Any) -> Any:
    """The module without what constants alone decide."""
    module = folded_in_numpy(module)
    rest = [relax.transform.FoldConstant()] if _computes_constants(module["main"]) else []
    return Sequential(
        [
            relax.transform.CanonicalizeBindings(),
            *rest,
            relax.transform.DeadCodeElimination(),
        ]
    )(module)


def shared(module: Any) -> Any:
    """The module with what is computed twice computed once. It reads all weights: once for a module, not after every pass."""
    passes = [
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    return Sequential(passes)(module)


def folded_in_numpy(module: Any) -> Any:
    """The module without what numpy computes of constants here, and as it is where TVM would compile a kernel."""
    module = module.clone()
    module["main"] = _FoldInNumpy(module).visit_expr(module["main"])
    return module


def _computes_constants(function: Any) -> bool:
    """Whether a call has constants alone for its operands."""
    values = dict(relax.analysis.get_var2val(function).items())

    def constant(operand: Any) -> bool:
        if isinstance(operand, relax.Var):
            return operand in values and constant(values[operand])
        if isinstance(operand, relax.Tuple):
            return all(map(constant, operand.fields))
        if isinstance(operand, relax.TupleGetItem):
            return constant(operand.tuple_value)
        return not isinstance(operand, relax.Call | relax.If)

    return any(isinstance(value, relax.Call) and all(map(constant, value.args)) for value in values.values())


@mutator
class _FoldInNumpy(PyExprMutator):  # type: ignore[misc, unused-ignore]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        arrays = [self._array(arg) for arg in call.args] if name in ARITHMETIC or name in MOVES else [None]
        if any(array is None for array in arrays):
            return call
        if name in MOVES:
            value = MOVES[name](call, *arrays)
        else:
            known = name in OF_ANY_DTYPE or all(str(arg.ty.dtype).startswith("float") for arg in call.args)
            value = ARITHMETIC[name](*arrays) if known else None
        if value is None or str(value.dtype) != str(call.ty.dtype):
            return call
        return relax.const(np.array(value, order="C"), str(value.dtype))

    def _array(self, operand: Any) -> Any:
        """A constant, or sizes that are known; None of everything else."""
        if isinstance(operand.ty, relax.ShapeType):
            sizes = operand.ty.values
            fixed = sizes is not None and all(isinstance(size, tirx.IntImm) for size in sizes)
            return np.array([int(size) for size in sizes], np.int64) if fixed else None
        bound = self.builder_.lookup_binding(operand) if isinstance(operand, relax.Var) else operand
        if isinstance(bound, tirx.FloatImm):  # the epsilon that FoldBatchnormToConv2D adds to a variance
            return np.asarray(bound.value, str(bound.ty.dtype))
        return bound.value.numpy() if isinstance(bound, GenericConst) else None
