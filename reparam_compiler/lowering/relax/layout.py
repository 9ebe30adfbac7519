"""Relax passes that bring a model into the layout of the kernels: Relax in, Relax out.

    simplify         batch norms and constants folded, what inference does not need decomposed
    channels_last    NCHW model -> NHWC inside, transposes only at the borders

TVM's ConvertLayout does it, for what `canonicalize.py` says in ops that it knows. TVM's FoldConstant writes a kernel for every
op, constant or not, and compiles one for every constant that it folds (seconds for a net's weights); `_FoldInNumpy` mostly
leaves it nothing to do, and then it is left out.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import GenericConst
from tvm.ir.transform import Sequential
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.errors import first_line
from reparam_compiler.lowering.relax.canonicalize import canonicalized, op_name
from reparam_compiler.lowering.relax.moves import PERMUTE, RESHAPE, without_idle_moves
from reparam_compiler.lowering.relax.norms import with_scales
from reparam_compiler.lowering.relax.transposed_convs import with_plain_convs

log = logging.getLogger(__name__)

FOLDABLE: dict[str, Callable[..., Any]] = {
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


def _to_size(move: Callable[[Any, list[int]], Any]) -> Callable[[Any, Any], Any]:
    """A move to the size that a call asks for."""

    def moved(array: Any, call: Any) -> Any:
        sizes = call.args[1].values if isinstance(call.args[1], relax.ShapeExpr) else None
        if sizes is None or not all(isinstance(n, tirx.IntImm) for n in sizes):
            return None
        return move(array, [int(n) for n in sizes])

    return moved


MOVES: dict[str, Callable[[Any, Any], Any]] = {
    PERMUTE: lambda x, call: np.transpose(x, None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]),
    "relax.expand_dims": lambda x, call: np.expand_dims(x, tuple(int(axis) for axis in call.attrs.axis)),
    RESHAPE: _to_size(np.reshape),
    "relax.broadcast_to": _to_size(np.broadcast_to),
}
"""What moves a constant, of its array and the call; None where a size is not known."""


def simplify(module: Any) -> Any:
    """Decompose what inference does not need, fold batch norms into convs and constants into constants."""
    folding = [relax.transform.FoldBatchnormToConv2D()] if _is_single(module) else []
    folded = Sequential([relax.transform.CanonicalizeBindings(), *folding])(_folded(module))
    return _folded(relax.transform.DecomposeOpsForInference()(with_scales(folded)))


def _is_single(module: Any) -> bool:
    """Whether every input is float32: TVM's folding adds a float32 epsilon to the variance, and fails on another dtype."""
    return all(str(parameter.ty.dtype) == "float32" for parameter in module["main"].params)


def channels_last(module: Any) -> Any:
    """NHWC inside: every conv2d reads and writes NHWC, its weight is `O kh kw Ig`, and what lies between follows."""
    converted = _folded(_converted(relax.transform.CanonicalizeBindings()(canonicalized(module))))
    return _folded(without_idle_moves(with_plain_convs(converted)))


def _converted(module: Any) -> Any:
    """The module as ConvertLayout makes it. An op at which it fails keeps its layout, as a kernel, and a log line names it."""
    convert = relax.transform.ConvertLayout(
        {"relax.nn.conv2d": ["NHWC", "OHWI"], "relax.nn.conv2d_transpose": ["NHWC", "OHWI"]}
    )
    try:
        return convert(module)
    except Exception as refusal:  # InternalError, IndexError …
        between = sorted(_op_names(module["main"]) - {"relax.nn.conv2d"})
        for left_out in ([name] for name in between), [between]:
            for names in left_out:
                with contextlib.suppress(Exception):  # it fails at another
                    converted = convert(_as_kernels(module, names))
                    words = ", ".join(name.removeprefix("relax.") for name in names)
                    log.warning("TVM's ConvertLayout fails at %s, which stays NCHW: %s", words, first_line(refusal))
                    return converted
        raise


def _op_names(function: Any) -> set[str]:
    found: set[str] = set()
    relax.analysis.post_order_visit(function, lambda part: found.add(op_name(part)))
    return found - {""}


def _as_kernels(module: Any, names: Sequence[str]) -> Any:
    """The module with these ops as loops, which say nothing of a layout."""
    others = [name for name in tvm.ir.Op.list_op_names() if name not in names]
    return relax.transform.LegalizeOps(skip_ops=others)(module)


def _folded(module: Any) -> Any:
    module = module.clone()
    module["main"] = _FoldInNumpy(module).visit_expr(module["main"])
    rest = [relax.transform.FoldConstant()] if _computes_constants(module["main"]) else []
    return Sequential(
        [
            relax.transform.CanonicalizeBindings(),
            *rest,
            relax.transform.EliminateCommonSubexpr(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)


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
    """Folds the arithmetic and the moves of constants that importers and batch norms leave behind."""

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        if name in MOVES:
            array = self._array(call.args[0])
            folded = None if array is None else MOVES[name](array, call)
        else:
            arrays = [self._array(arg) for arg in call.args] if name in FOLDABLE else [None]
            known = all(array is not None and (array.dtype.kind == "f" or name in OF_ANY_DTYPE) for array in arrays)
            folded = FOLDABLE[name](*arrays) if known else None
        if folded is None or str(folded.dtype) != str(call.ty.dtype):
            return call
        return relax.const(np.array(folded, order="C"), str(folded.dtype))

    def _array(self, operand: Any) -> Any:
        bound = self.builder_.lookup_binding(operand) if isinstance(operand, relax.Var) else operand
        if isinstance(bound, tirx.FloatImm):  # the epsilon that FoldBatchnormToConv2D adds to a variance
            return np.asarray(bound.value, str(bound.ty.dtype))
        return bound.value.numpy() if isinstance(bound, GenericConst) else None
