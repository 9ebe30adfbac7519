"""A model of float16 is computed in float32 on a CPU, and rounded where it says so; Relax in, Relax out.

    main(x: float16): y = clip(conv2d(x, W) + b)    becomes    y = astype(clip(conv2d(astype(x, float32), W') + b'), float16)

A CPU multiplies no float16: TVM's loops convert each element at each multiplication, one by one, and round each partial sum. So
what lies between the inputs and the outputs is the net of float32, with the same kernels and the same epilogues, whose weights
are numbers of float16 (and are stored as such, `cpu/packing.py`). Rounded to float16 are the outputs, and what the model casts
to float16 that comes of no float16; a hard sigmoid that torch computes in float32, or a resizing that a converter left so, ends
in no rounding. Numbers between may be larger than float16 has them, where torch would have an infinity.

An op whose result stays float16 whatever goes in, such as a kernel of the importer's, is left as it is, between casts. A table
that elements are taken from stays float16, too: it is read and not computed with.
"""

from collections.abc import Iterator
from typing import Any

from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.relax.canonicalize import canonicalized, op_name
from reparam_compiler.lowering.relax.folding import folded_in_numpy

HALF, SINGLE = "float16", "float32"
CAST = "relax.astype"
HELD_EXACTLY = ("bool", "int8", "uint8")
"""Dtypes of which float16 holds every number, so that casting them to it rounds none."""
KERNELS = ("relax.call_tir", "relax.call_tir_inplace", "relax.call_pure_packed", "relax.call_dps_packed")
"""Calls whose operands and results have the dtypes that the function called was made for."""
LOOKUPS = tuple(f"relax.{name}" for name in ("take", "gather_elements", "gather_nd", "index_tensor"))


def in_single(module: Any) -> Any:
    """The module whose numbers of float16 are computed in float32; as it is where it has none."""
    main = module["main"]
    if not any(HALF in _dtypes(var) for var in (*main.params, *relax.analysis.get_var2val(main))):
        return module
    bounds_known = relax.transform.CanonicalizeBindings()(folded_in_numpy(module))
    module = canonicalized(bounds_known)  # ONNX's Clip is a kernel of the importer's, and then an op
    module["main"] = _InSingle(module).visit_expr(module["main"])
    return module


@mutator
class _InSingle(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Values of float16 are of float32 within a dataflow block, and of float16 where they leave it.

    of_half: the variables of the function as it was that are computed of some float16.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.of_half: set[Any] = set()

    def _is_of_half(self, value: Any) -> bool:
        return any(HALF in _dtypes(each) or each in self.of_half for each in relax.analysis.all_vars(value))

    def visit_var_binding_(self, binding: Any) -> None:
        if self._is_of_half(binding.value):
            self.of_half.add(binding.var)
        value, inner = self.visit_expr(binding.value), isinstance(binding.var, relax.DataflowVar)
        if isinstance(value, relax.Tuple):
            value = self._widened(value)
        value = value if inner else self._of_type(value, binding.var.ty)
        leaves = not inner and self.builder_.current_block_is_dataflow()
        self.set_var_remap(binding.var, (self.builder_.emit_output if leaves else self.builder_.emit)(value))

    def visit_call_(self, call: Any) -> Any:
        operands, name = [self.visit_expr(operand) for operand in call.args], op_name(call)
        if name == CAST and _dtypes(call) == [HALF]:
            return self._cast(call, operands[0])
        if not any(HALF in _dtypes(each) for each in (call, *call.args)):
            return relax.Call(call.op, operands, call.attrs, call.ty_args)
        if name and name not in KERNELS and not (name in LOOKUPS and isinstance(operands[0], GenericConst)):
            widened = [self._widened(operand) for operand in operands]
            single = self.builder_.normalize(relax.Call(call.op, widened, call.attrs, call.ty_args))
            if HALF not in _dtypes(single):
                return widened[0] if name == CAST and _dtypes(single) == _dtypes(widened[0]) else single
        narrow = [self._of_type(operand, original.ty) for operand, original in zip(operands, call.args, strict=True)]
        return relax.Call(call.op, narrow, call.attrs, call.ty_args)

    def _cast(self, call: Any, operand: Any) -> Any:
        """What a cast to float16 is in float32: nothing of what comes of float16, and else a rounding."""
        (before,) = _dtypes(call.args[0])
        if before == HALF or (before == SINGLE and self._is_of_half(call.args[0])):
            return operand
        if before in HELD_EXACTLY:
            return relax.op.astype(operand, SINGLE)
        return relax.op.astype(self.builder_.emit(relax.op.astype(operand, HALF)), SINGLE)

    def _widened(self, value: Any) -> Any:
        """The value, or each part of a tuple, in float32 where it is in float16."""
        return self._of_dtype(value, HALF, SINGLE)

    def _of_type(self, value: Any, ty: Any) -> Any:
        """The value, or each part of a tuple, in float16 where the type is of that."""
        if isinstance(ty, relax.TupleType):
            return relax.Tuple(
                [self._of_type(part, of_part) for part, of_part in zip(self._parts(value), ty.fields, strict=True)]
            )
        return self._of_dtype(value, SINGLE, HALF) if list(_dtypes_of(ty)) == [HALF] else value

    def _of_dtype(self, value: Any, before: str, after: str) -> Any:
        if before not in _dtypes(value):
            return value
        if isinstance(value.ty, relax.TupleType):
            return relax.Tuple([self._of_dtype(part, before, after) for part in self._parts(value)])
        if isinstance(value, GenericConst):
            return relax.const(value.value.numpy().astype(after), after)
        return self.builder_.emit(relax.op.astype(value, after))

    def _parts(self, value: Any) -> list[Any]:
        if isinstance(value, relax.Tuple):
            return list(value.fields)
        return [self.builder_.emit(relax.TupleGetItem(value, at)) for at in range(len(value.ty.fields))]


def _dtypes(value: Any) -> list[str]:
    """The dtype of a tensor, or of each in a tuple; none of what is neither."""
    return list(_dtypes_of(value.ty))


def _dtypes_of(ty: Any) -> Iterator[str]:
    if isinstance(ty, relax.TupleType):
        for field in ty.fields:
            yield from _dtypes_of(field)
    elif isinstance(ty, relax.TensorType) and ty.dtype is not None:
        yield str(ty.dtype)
