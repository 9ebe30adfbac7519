"""A node that a pass made, as ONNX nodes: convs, transposed convs and linears.

Padding that ONNX's Conv has no word for (negative, reflected, repeated) goes into a Pad of its own before the conv. What
later opsets read from an input is an attribute in earlier ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from reparam_compiler.core.kernel import PaddingMode, Pairs
from reparam_compiler.errors import RewriteError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.ir.kind import OperandName
from reparam_compiler.vocabulary.dtypes import FLOATING
from reparam_compiler.vocabulary.padding import ONNX_PAD

_TO_THE_END = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Emitter:
    """What a node needs of the model that it goes into.

    opset: the version of ONNX's own domain.
    name_of: the model's name for a parameter that it has already, or None.
    tensor: adds a tensor under a free name like the one given, as `dtype`, or transposed; gives the name.
    value: a free name like the one given for a value.
    rank_of: how many axes a value has, or None.
    """

    opset: int
    name_of: Callable[[Param], str | None]
    tensor: Callable[[str, Param, str, bool], str]
    value: Callable[[str], str]
    rank_of: Callable[[str], int | None]

    def emit(self, node: Node, output: str) -> list[NodeProto]:
        """The nodes that compute `node` into that value; raises RewriteError for an op that passes do not make."""
        match node.op:
            case ops.Conv() as op:
                return self._conv(node, op, output)
            case ops.ConvTranspose() as op:
                return [self._conv_transpose(node, op, output)]
            case ops.Linear():
                return self._linear(node, output)
            case op:
                raise RewriteError(f"{node.id}: {op} cannot be written back to ONNX; this is a limit of the ONNX frontend")

    def _conv(self, node: Node, op: ops.Conv, output: str) -> list[NodeProto]:
        x, rank = self._name(node, "x"), len(op.stride)
        padding, before = op.padding, list[NodeProto]()
        if op.mode != "zeros" and any(n < 0 for pair in padding for n in pair):  # ONNX cuts by constant padding alone
            cut, x = x, self.value(f"{node.id}.cut")
            cuts = tuple((min(low, 0), min(high, 0)) for low, high in padding)
            before += self._pad(cut, x, ((0, 0), (0, 0), *cuts), "zeros")
            padding = tuple((max(low, 0), max(high, 0)) for low, high in padding)
        if any(n < 0 for pair in padding for n in pair) or (op.mode != "zeros" and any(map(any, padding))):
            padded = self.value(f"{node.id}.padded")
            before += self._pad(x, padded, ((0, 0), (0, 0), *padding), op.mode)
            x, padding = padded, ((0, 0),) * rank
        attributes: dict[str, Any] = {
            "dilations": list(op.dilation),
            "group": op.groups,
            "kernel_shape": list(_weight(node).shape[2:]),
            "pads": _pads(padding),
            "strides": list(op.stride),
        }
        inputs = trimmed([x, self._name(node, "weight"), self._name(node, "bias")])
        return [*before, helper.make_node("Conv", inputs, [output], **attributes)]

    def _conv_transpose(self, node: Node, op: ops.ConvTranspose, output: str) -> NodeProto:
        """What is cut off and what is added at the high end cancel out: runtimes add less than the stride only."""
        pairs = zip(op.padding, op.output_padding, strict=True)
        ends = [(low, max(high - extra, 0), max(extra - high, 0)) for (low, high), extra in pairs]
        if any(low < 0 or extra >= stride for (low, _, extra), stride in zip(ends, op.stride, strict=True)):
            raise RewriteError(
                f"{node.id}: found a transposed conv with padding {op.padding} and output padding {op.output_padding}; ONNX "
                "adds nothing at the low end, and less than the stride at the high end"
            )
        attributes: dict[str, Any] = {
            "dilations": list(op.dilation),
            "group": op.groups,
            "kernel_shape": list(_weight(node).shape[2:]),
            "pads": [low for low, _, _ in ends] + [high for _, high, _ in ends],
            "strides": list(op.stride),
        }
        if any(extra for _, _, extra in ends):
            attributes["output_padding"] = [extra for _, _, extra in ends]
        inputs = trimmed([self._name(node, place) for place in ("x", "weight", "bias")])
        return helper.make_node("ConvTranspose", inputs, [output], **attributes)

    def _linear(self, node: Node, output: str) -> list[NodeProto]:
        """Gemm for rows; MatMul and Add where x has other axes, or they are not known."""
        x, bias = self._name(node, "x"), self._name(node, "bias")
        if self.rank_of(x) == 2:
            return [helper.make_node("Gemm", trimmed([x, self._name(node, "weight"), bias]), [output], transB=1)]
        weight = _weight(node)
        matrix = self.tensor(f"{node.id}.weight", weight, self.dtype_of(node, weight), True)
        product = self.value(f"{node.id}.product") if bias else output
        nodes = [helper.make_node("MatMul", [x, matrix], [product])]
        return [*nodes, helper.make_node("Add", [product, bias], [output])] if bias else nodes

    def _pad(self, x: str, output: str, padding: Pairs, mode: PaddingMode) -> list[NodeProto]:
        if mode != "zeros" and any(n < 0 for pair in padding for n in pair):
            raise RewriteError(f"{output}: ONNX has no {mode} padding by negative numbers, found {padding}")
        if mode == "circular" and self.opset < 19:
            return self._wrapped(x, output, padding)
        if self.opset < 11:
            return [helper.make_node("Pad", [x], [output], mode=ONNX_PAD[mode], pads=_pads(padding))]
        return [helper.make_node("Pad", [x, self._integers(f"{output}.pads", _pads(padding))], [output], mode=ONNX_PAD[mode])]

    def _wrapped(self, x: str, output: str, padding: Pairs) -> list[NodeProto]:
        """Circular padding before opset 19: on each axis what stands at the one end is joined to the other."""
        nodes: list[NodeProto] = []
        axes = [axis for axis, pair in enumerate(padding) if any(pair)]
        for axis in axes:
            (low, high), joined = padding[axis], output if axis == axes[-1] else self.value(f"{output}.{axis}")
            pieces = [x]
            for start, stop, amount in ((-low, _TO_THE_END, low), (0, high, high)):
                if not amount:
                    continue
                piece = self.value(f"{joined}.{'before' if start else 'after'}")
                bounds: dict[str, Any] = {"starts": [start], "ends": [stop], "axes": [axis]}
                if self.opset < 10:
                    nodes.append(helper.make_node("Slice", [x], [piece], **bounds))
                else:
                    names = [self._integers(f"{piece}.{key}", values) for key, values in bounds.items()]
                    nodes.append(helper.make_node("Slice", [x, *names], [piece]))
                pieces = [piece, *pieces] if start else [*pieces, piece]
            nodes.append(helper.make_node("Concat", pieces, [joined], axis=axis))
            x = joined
        return nodes

    def _integers(self, name: str, values: Sequence[int]) -> str:
        return self.tensor(name, Param.of(np.array(values, np.int64), role="const", dtype="i64"), "i64", False)

    def _name(self, node: Node, place: OperandName) -> str:
        """What the model calls an operand, a new tensor where it has none; empty for one that is absent."""
        operand = node.operand(place)
        if operand is None or isinstance(operand, str):
            return operand or ""
        return self.name_of(operand) or self.tensor(f"{node.id}.{operand.role}", operand, self.dtype_of(node, operand), False)

    def dtype_of(self, node: Node, param: Param) -> str:
        """A fused weight has the dtype of the values that it meets: ONNX mixes none."""
        known = node.type.dtype if node.type else param.dtype
        return known if known in FLOATING and param.dtype in FLOATING else param.dtype


def _weight(node: Node) -> Param:
    weight = node.param("weight")
    if weight is None:
        raise RewriteError(f"{node.id}: found {node.op.name} without a weight, which is none that a pass may make")
    return weight


def _pads(padding: Pairs) -> list[int]:
    """ONNX has all the lower amounts first, then all the upper ones."""
    return [low for low, _ in padding] + [high for _, high in padding]


def trimmed(inputs: Sequence[str]) -> list[str]:
    """The inputs without the absent operands at the end."""
    names = list(inputs)
    while names and not names[-1]:
        names.pop()
    return names
