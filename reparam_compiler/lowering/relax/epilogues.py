"""What follows a tensor in a Relax function and is pointwise: the steps of an epilogue; nothing is changed here.

    y = conv2d(x, W);  a = y + b;  e = erf(a / sqrt 2) + 1;  z = a * e        a, e and z are computed where y is: one result, z

Values may be read again, so that x sigmoid(x) and the like are found in any spelling; what others read too ends the epilogue.

    p = quantize(y, s);  z = quantize(dequantize(p, s) + dequantize(q, t), u)         q: bytes, which the epilogue reads as such

What is quantized is written, unless all that follows it up to other bytes, such as a residual sum, can be computed at once.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import GenericConst

from reparam_compiler.lowering.conv.algorithms import Operand, Step
from reparam_compiler.lowering.conv.pointwise import FUSED, POINTWISE, STEPS
from reparam_compiler.lowering.relax.canonicalize import op_name

QUANTIZED = ("int8", "uint8")
CASTS = ("float32", "int32", *QUANTIZED)
"""To what a step may cast."""
OF_INTEGERS = ("add", "sub", "mul", "maximum", "minimum", "relu", "to")
"""Steps that mean the same for integers."""
DEQUANTIZING = ("relax.astype", "relax.subtract", "relax.multiply")
"""What makes numbers of bytes (`relax/quantized.py`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Epilogue:
    """Steps behind a tensor.

    operands: what the steps that read something read, in order: arrays `O`, or Relax tensors of the result's shape.
    absorbed: the variables between, the tensor first, which nothing else reads. result: the variable that is left.
    """

    steps: tuple[Step, ...]
    operands: tuple[Any, ...]
    absorbed: tuple[Any, ...]
    result: Any


@dataclass(frozen=True, slots=True, eq=False)
class Pointwise:
    """The bindings of a function, and who reads what: how often each variable is read, by which bindings (their positions).

    by_variable: the binding of each.
    """

    bindings: Sequence[Any]
    uses: Counter[Any]
    readers: dict[Any, list[int]]
    by_variable: dict[Any, Any]

    @staticmethod
    def of(main: Any) -> "Pointwise":
        bindings = [b for block in main.body.blocks for b in block.bindings if isinstance(b, relax.VarBinding)]
        uses: Counter[Any] = Counter(_read_by(main.body.body))
        readers: dict[Any, list[int]] = defaultdict(list)
        for position, binding in enumerate(bindings):
            for variable in _read_by(binding.value):
                uses[variable] += 1
                readers[variable].append(position)
        return Pointwise(bindings, uses, readers, {binding.var: binding for binding in bindings})

    def epilogue(
        self, start: Any, channels: int, taken: Collection[Any] = (), *, tensors: bool = True, casts: bool = False
    ) -> Epilogue | None:
        """The longest epilogue of `start`, whose last axis has `channels`; nothing where there is none.

        taken: variables that are computed elsewhere and may not be steps.
        tensors: whether steps may read other tensors.
        casts: whether steps may give another dtype, and read bytes for the numbers that those stand for.
        """
        found: Epilogue | None = None
        values, steps, inside = [start], list[Step](), Counter[Any]()
        operands, quantized = list[Any](), False
        for binding in self._readers_in_order(values):
            step, operand = (None, ()) if binding.var in taken else _step(binding, values, channels)
            if step is None or _nested(step, steps) or (step.operand == "tensor" and not tensors):
                break
            if str(binding.var.ty.dtype) != str(start.ty.dtype) and not casts:
                break
            if casts and step.operand == "tensor" and (read := self._from_bytes(operand[0], channels)) is not None:
                source = len(values) - 1 if step.source is None else step.source
                values += [None] * len(read.steps)
                steps += read.steps
                operand = read.operands
                step = replace(step, operand="earlier", source=source, other=len(values) - 1)
            steps.append(step)
            operands += operand
            inside.update(_read_by(binding.value))
            is_of_bytes, known = str(binding.var.ty.dtype) in QUANTIZED, [value for value in values if value is not None]
            if all(self.uses[value] == inside[value] for value in known) and (is_of_bytes or not quantized):
                found = Epilogue(tuple(steps), tuple(operands), tuple(known), binding.var)
            quantized = quantized or is_of_bytes
            values.append(binding.var)
        return found

    def reads(self, operands: Sequence[Any]) -> None:
        """Counts the tensors that a kernel will read beside what the bindings do, so that no other epilogue takes them in."""
        self.uses.update(operand for operand in operands if isinstance(operand, relax.Var))

    def _from_bytes(self, tensor: Any, channels: int) -> Epilogue | None:
        """The steps from bytes to a tensor of numbers that they stand for; nothing of a tensor that is none."""
        steps: list[Step] = []
        while tensor in self.by_variable and str(tensor.ty.dtype) not in QUANTIZED:
            binding = self.by_variable[tensor]
            call = binding.value
            if op_name(call) not in DEQUANTIZING:
                return None
            step, _ = _step(binding, [call.args[0]], channels)
            if step is None or step.operand not in ("none", "scalar"):
                return None
            steps.append(replace(step, dtype=str(tensor.ty.dtype)))
            tensor = call.args[0]
        dtype = str(tensor.ty.dtype)
        if dtype not in QUANTIZED or not steps:
            return None
        return Epilogue((Step("read", "tensor", dtype=dtype), *reversed(steps)), (tensor,), (), tensor)

    def _readers_in_order(self, values: list[Any]) -> Iterator[Any]:
        """The bindings that read any of the values, in order; the values grow as they are taken."""
        last = -1
        while positions := [at for value in values if value is not None for at in self.readers[value] if at > last]:
            last = min(positions)
            yield self.bindings[last]


def sizes_of(expr: Any) -> tuple[int, ...] | None:
    """The fixed shape of a tensor; nothing where a size is symbolic."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None or not hasattr(ty.shape, "values"):
        return None
    sizes = list(ty.shape.values)
    return tuple(int(n) for n in sizes) if all(isinstance(n, tirx.IntImm) for n in sizes) else None


def constant_of(expr: Any) -> Any:
    """The array of a constant; nothing of any other expression."""
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def _read_by(expr: Any) -> list[Any]:
    """Each variable that an expression reads, as often as it reads it."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Call):
        return list(itertools.chain.from_iterable(_read_by(arg) for arg in expr.args))
    if isinstance(expr, relax.Tuple):
        return list(itertools.chain.from_iterable(_read_by(field) for field in expr.fields))
    found: list[Any] = []
    relax.analysis.post_order_visit(expr, lambda e: found.append(e) if isinstance(e, relax.Var) else None)
    return found


def _nested(step: Step, before: Sequence[Step]) -> bool:
    """Whether the step is a function behind a function; nested ones compile in time that grows exponentially."""
    return STEPS[step.op].function is not None and any(STEPS[each.op].function is not None for each in before)


def _step(binding: Any, values: Sequence[Any], channels: int) -> tuple[Step | None, tuple[Any, ...]]:
    """The step that a binding is, and the operands that it reads; none where the kernel cannot compute it."""
    call, start = binding.value, values[0]
    word = FUSED.get(op_name(call))
    if word is None or sizes_of(binding.var) != sizes_of(start):
        return None, ()
    dtype = "" if binding.var.ty.dtype == start.ty.dtype else str(binding.var.ty.dtype)
    takes, left = POINTWISE[word].takes, _position(call.args[0], values)
    if takes == "dtype":
        if str(binding.var.ty.dtype) not in CASTS:
            return None, ()
        return Step(word, source=_unless_last(left, values), dtype=dtype), ()
    if binding.var.ty.dtype != call.args[0].ty.dtype or ("int" in str(binding.var.ty.dtype) and word not in OF_INTEGERS):
        return None, ()
    if takes == "nothing":
        return Step(word, source=_unless_last(left, values), dtype=dtype), ()
    if takes == "slopes":
        slopes, last = constant_of(call.args[1]), len(start.ty.shape) - 1
        if slopes is None or slopes.size != channels or int(call.attrs.axis) not in (-1, last):
            return None, ()
        return Step(word, "channels", source=_unless_last(left, values), dtype=dtype), (
            np.ascontiguousarray(slopes.reshape(-1)),
        )
    right = _position(call.args[1], values)
    if left is not None and right is not None:
        return Step(word, "earlier", source=_unless_last(left, values), other=right, dtype=dtype), ()
    source, swapped = _unless_last(right if left is None else left, values), left is None
    kind, operand = _operand(call.args[0] if swapped else call.args[1], binding.var, channels)
    if kind == "scalar" and operand == 0 and word == ("div" if swapped else "mul"):
        return None, ()  # 0 of any value: TVM folds the sums away, which a schedule looks for
    if kind == "scalar":
        return Step(word, kind, swapped, float(operand), source, dtype=dtype), ()
    return (None, ()) if kind == "none" else (Step(word, kind, swapped, source=source, dtype=dtype), (operand,))


def _position(operand: Any, values: Sequence[Any]) -> int | None:
    """Which of the values an operand is."""
    return next((index for index, value in enumerate(values) if value is not None and operand.same_as(value)), None)


def _unless_last(position: int | None, values: Sequence[Any]) -> int | None:
    """What `Step.source` says of a value."""
    return None if position == len(values) - 1 else position


def _operand(other: Any, result: Any, channels: int) -> tuple[Operand, Any]:
    """What the other side of a binary op is to the kernel, and its value."""
    if other.ty.dtype != result.ty.dtype:
        return "none", None
    value = constant_of(other)
    if value is not None and value.size == 1:
        return "scalar", value.item()
    if value is not None and value.ndim and value.shape[-1] == value.size == channels:
        return "channels", np.ascontiguousarray(value.reshape(-1))
    return ("tensor", other) if sizes_of(other) == sizes_of(result) else ("none", None)
