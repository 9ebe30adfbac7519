"""What is known of the values of an ONNX model without running it: one evaluator, asked by value.

    shapes = of(model)
    shapes.derive(node, place)      noted, if it depends on constants and sizes alone
    shapes.type("conv_out")         dtype and shape
    shapes.constant("kernel")       elements that depend on no input
    shapes.sizes("target_shape")    (2, ("conv_out", 1), -1)
    shapes.samples("target_shape")  its elements for several sizes of the axes that the model leaves open

It joins ONNX's inference (`inference`), values made of sizes (`sizes`) and nodes that are run on sampled sizes (`sampled`):
what one of them finds, the others see.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.shapes.inference import OWN_DOMAIN, infer_outputs, infer_types, opset_of, refusal_of
from reparam_compiler.frontends.onnx.shapes.sampled import SampledShapes
from reparam_compiler.frontends.onnx.shapes.sizes import Elements, Sizes
from reparam_compiler.frontends.onnx.tensors import RUN_CHECKER, Constant, constant_of, dtype_word, element_type
from reparam_compiler.ir.graph import TensorType
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.bodies import bodies_of
from reparam_compiler.vocabulary.dtypes import FLOATING
from reparam_compiler.vocabulary.misread import is_misread
from reparam_compiler.vocabulary.resolve import onnx_facts


def of(model: ModelProto, sizes: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> "Shapes":
    """The evaluator of a model; nodes are told to it in the model's order. sizes: shapes that inputs have in every run."""
    return Shapes(model, sizes)


class Shapes:
    """What is known so far, by the names of values.

    opset: the version of ONNX's own domain.
    constants: the values that depend on no input.
    values: those that the graph has a node for, which are no constants.
    """

    def __init__(self, model: ModelProto, sizes: Mapping[str, tuple[int, ...]]) -> None:
        self.opset = opset_of(model)
        self.constants: dict[str, Constant] = {}
        self.values: set[str] = set()
        self._model = model
        self._functions = {(function.domain, function.name) for function in model.functions}
        inferred = infer_types(model, sizes)
        self._types, self._dtypes = inferred.types, inferred.dtypes
        self._better: set[str] = set()
        self._sizes = Sizes(self.constants.get, self._types)
        self._sampled = SampledShapes(model, self.constants.get, self.dtype, self.type)

    def __contains__(self, name: str) -> bool:
        """True for what depends on constants and sizes alone."""
        return name in self.constants or name in self._sampled

    @property
    def sized(self) -> dict[str, Constant]:
        """The constants that were taken from the sizes of computed values."""
        return {name: constant for name, constant in self.constants.items() if self._sampled.is_sized(name)}

    def is_function(self, node: NodeProto) -> bool:
        """True for a call of a function that the model defines."""
        return (node.domain, node.op_type) in self._functions

    def is_resolved(self, node: NodeProto) -> bool:
        """True for what the vocabulary may have a row of: a type of ONNX's own domain that the model does not define."""
        return node.domain in OWN_DOMAIN and not self.is_function(node)

    def dtype(self, name: str) -> str | None:
        """The dtype of a value."""
        constant = self.constants.get(name)
        return constant.dtype if constant else self._dtypes.get(name)

    def type(self, name: str) -> TensorType | None:
        """The type of a value, where its rank is known: one that holds for every run."""
        constant = self.constants.get(name)
        return TensorType(constant.dtype, constant.shape) if constant else self._types.get(name)

    def sizes(self, name: str) -> Elements | None:
        """The elements of a value that is made of sizes, or None."""
        return self._sizes.of(name)

    def samples(self, name: str) -> list[np.ndarray] | None:
        """The elements of a value that depends on no data, for each try of the open sizes; None where there are none."""
        if name in self._sampled:
            return self._sampled.sampled(name)
        constant = self.constants.get(name)
        return None if constant is None else [constant.load()] * self._sampled.tries

    def shapes(self, name: str) -> list[tuple[int, ...]] | None:
        """The shape of a value for each try of the open sizes; None where it is not known."""
        known = self.type(name)
        return None if known is None else self._sampled.shapes(known)

    def node(self, name: str) -> tuple[int, NodeProto]:
        """The node that gives a value which depends on open sizes, and its place in the model."""
        return self._sampled.node(name)

    def constant(self, name: str) -> Constant | None:
        """The constant of this name: where open sizes have a part in it, it is constant if they do not matter."""
        if name not in self.constants and name not in self.values and self._sampled.is_open(name):
            value = self._sampled.same_in_all(name)
            if value is not None:
                self.constants[name] = self._evaluated(name, value)
        return self.constants.get(name)

    def derive(self, node: NodeProto, place: int) -> bool:
        """Notes what depends on constants and sizes alone; False for every other node."""
        if not self.is_resolved(node) or onnx_facts(node.op_type) & (Facts.RANDOM | Facts.QUANTIZED):
            return False
        if is_misread(node.op_type, self.opset):
            return False
        if node.op_type == "Constant":
            return self._read_constant(node)
        if next(bodies_of(node), None) is not None:
            return False
        if node.op_type == "Identity" and node.input[0] in self.constants:
            self.constants[node.output[0]] = self.constants[node.input[0]]
            return True
        node = self._with_dtype_stated(node)
        if not self._sampled.follow(node, place):
            return False
        self._sizes.follow(node)
        self.refine(node)
        outputs = [name for name in node.output if name]
        found = {name: self._computed(name) for name in outputs if not self._sampled.is_open(name)}
        if not all(found.values()):
            self._sampled.forget(node)
            return False
        self.constants.update((name, constant) for name, constant in found.items() if constant)
        return True

    def _with_dtype_stated(self, node: NodeProto) -> NodeProto:
        """A CastLike as the Cast that it is: of the value that it is like it reads the dtype alone."""
        dtype = self.dtype(node.input[1]) if node.op_type == "CastLike" else None
        if dtype is None:
            return node
        return helper.make_node("Cast", node.input[:1], node.output, to=element_type(dtype))

    def follow(self, node: NodeProto) -> None:
        """Notes the sizes that a node of the graph gives."""
        self._sizes.follow(node)

    def refine(self, node: NodeProto) -> None:
        """Finds types that ONNX's inference missed, because it does not see what a shape is made of."""
        given = [name for name in node.input if name]
        better = any(name in self._better or name in self._sampled for name in given)
        outputs = [name for name in node.output if name]
        if not better or all(name in self._types and self._types[name].static_shape is not None for name in outputs):
            return
        known = self._known_inputs(node)
        if node.domain not in OWN_DOMAIN or len(known) < len(set(given)):
            return
        for name, found in infer_outputs(self._model, node, known).items():
            if self.note_type(name, found):
                self._dtypes[name] = found.dtype

    def refusal(self, node: NodeProto) -> str | None:
        """What ONNX says against a node, with all that is known of its inputs; None where it takes it."""
        return refusal_of(self._model, node, self._known_inputs(node))

    def _known_inputs(self, node: NodeProto) -> dict[str, Constant | TensorType]:
        known = {name: self.constants.get(name) or self._types.get(name) for name in node.input if name}
        return {name: found for name, found in known.items() if found is not None}

    def note_type(self, name: str, found: TensorType) -> bool:
        """Takes a type over that says more than what is known; True where it does."""
        if name in self._types and _known_sizes(found) <= _known_sizes(self._types[name]):
            return False
        self._types[name] = found
        self._better.add(name)
        return True

    def note_same(self, source: str, name: str) -> None:
        """Notes that a value has the type of another."""
        known = self._types.get(source)
        if known is not None and self.dtype(name) in (known.dtype, None):
            self.note_type(name, known)

    def note_dtype(self, name: str, dtype: str | None) -> None:
        """Takes over the dtype of a value of which none is known."""
        if dtype is not None:
            self._dtypes.setdefault(name, dtype)

    def _computed(self, name: str) -> Constant | None:
        """A constant that is computed when it is asked for, or at once where its shape is not known; None where that fails."""
        known = self._types.get(name)
        shape = known.static_shape if known else None
        if known and shape is not None:
            return Constant(name, known.dtype, shape, lambda: self._in_shape(name, shape), computed=True)
        try:
            value = self._sampled.evaluate(name)
        except UnsupportedModelError:
            return None
        return None if value.dtype.kind in "OSU" else self._evaluated(name, value)

    def _in_shape(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = self._sampled.evaluate(name)
        if value.size != math.prod(shape):
            raise UnsupportedModelError(f"{name} comes out as {value.shape}, and ONNX infers {shape}: {RUN_CHECKER}")
        return value.reshape(shape)

    def _evaluated(self, name: str, value: np.ndarray) -> Constant:
        dtype = self._dtypes.get(name)
        if dtype is None:
            given = (self.dtype(source) for source in self._sampled.node(name)[1].input)
            floating = next((word for word in given if word and word in FLOATING), "f32")
            dtype = floating if value.dtype.kind == "f" else dtype_word(helper.np_dtype_to_tensor_dtype(value.dtype))
        return Constant(name, dtype, value.shape, lambda: value, computed=True)

    def _read_constant(self, node: NodeProto) -> bool:
        name, attribute = node.output[0], node.attribute[0] if node.attribute else None
        if attribute is None or attribute.name.startswith(("value_string", "sparse")):
            return False
        tensor = attribute.t
        if attribute.name != "value":
            value = helper.get_attribute_value(attribute)
            tensor = numpy_helper.from_array(np.array(value, np.float32 if "float" in attribute.name else np.int64))
        if tensor.data_type == TensorProto.STRING:
            return False
        self.constants[name] = constant_of(tensor, name)
        return True


def _known_sizes(known: TensorType) -> tuple[int, int]:
    """How much a type says: sizes, then names of sizes."""
    return sum(isinstance(size, int) for size in known.shape), sum(size is not None for size in known.shape)
