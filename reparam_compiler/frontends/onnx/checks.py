"""What readers take for granted of an ONNX model, asked before anything is read: what a file states, and what a type takes.

    text        is UTF-8
    tensors     a dtype that there is, sizes from 0 on, as many elements as these say
    nodes       as many inputs and outputs as ONNX's own types have, attributes of their kinds, values to attributes' types
    sizes       that memory holds (`great_sizes`)
    functions   one of a name, and none calls itself, by whatever way

It costs a look at each node, and at no elements but the few of sizes. What is right by itself and wrong together (a kernel of
three axes) is for the readers.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, defs

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.great_sizes import check_sizes
from reparam_compiler.frontends.onnx.io import tensors_of
from reparam_compiler.frontends.onnx.shapes.inference import OWN_DOMAIN, opset_among, opset_of
from reparam_compiler.frontends.onnx.tensors import REWRITE, RUN_CHECKER, called, check_tensor
from reparam_compiler.vocabulary.bodies import bodies_of, with_inner

_NUMBERS = {AttributeProto.FLOAT: "f", AttributeProto.INT: "i", AttributeProto.STRING: "s"}
_OBJECTS = {
    AttributeProto.TENSOR: "t", AttributeProto.GRAPH: "g", AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}  # fmt: skip
_LISTS = {
    AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints", AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors", AttributeProto.GRAPHS: "graphs", AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}  # fmt: skip
Called = tuple[str, str, str]
"""What a node calls, or a function is called: domain, name and overload."""
_FIELDS = {**_NUMBERS, **_OBJECTS, **_LISTS}
"""For each type of an attribute the field that has its value: a number that is 0 may be left out."""


def check(model: ModelProto) -> None:
    """Raises UnsupportedModelError for a model that no reader could make sense of; the message names the place."""
    _check_text(model)
    for tensor in tensors_of(model):
        check_tensor(tensor)
    _check_functions(model.functions)
    defined = frozenset(map(_key, model.functions))
    opset = opset_of(model)
    _check_graph(model.graph, opset, defined)
    for function in model.functions:
        own = opset_among(function.opset_import, f"the function {_spelled(_key(function))}")
        _check_nodes(function.node, opset if own is None else own, defined)


def _check_text(message: Message) -> None:
    """Raises UnsupportedModelError for a name that is no text: protobuf gives it as bytes, and takes it nowhere else."""
    for descriptor, value in message.ListFields():
        values: Any = [value] if isinstance(value, str | bytes | int | float | Message) else value
        if descriptor.type == descriptor.TYPE_STRING:
            if wrong := [text for text in values if isinstance(text, bytes)]:
                raise UnsupportedModelError(f"{descriptor.full_name} is {wrong[0]!r:.80}, which is no UTF-8: {REWRITE}")
        elif descriptor.message_type is TensorProto.DESCRIPTOR:
            for tensor in values:  # whose elements are not to be copied
                if isinstance(tensor.name, bytes) or isinstance(tensor.doc_string, bytes):
                    raise UnsupportedModelError(f"a tensor is called {tensor.name!r:.80}, which is no UTF-8: {REWRITE}")
        elif descriptor.message_type is not None:
            for part in values:
                _check_text(part)


def _check_graph(graph: GraphProto, opset: int, defined: frozenset[Called]) -> None:
    for sparse in graph.sparse_initializer:
        check_tensor(sparse.values)
        check_tensor(sparse.indices)
    _check_nodes(graph.node, opset, defined)
    check_sizes(graph)


def _check_nodes(nodes: Iterable[NodeProto], opset: int, defined: frozenset[Called]) -> None:
    for node in nodes:
        if not any(node.output):
            raise UnsupportedModelError(f"{called(node)} gives no value; {RUN_CHECKER}")
        for attribute in node.attribute:
            _check_value(node, attribute)
        for body in bodies_of(node):
            _check_graph(body, opset, defined)
        if node.domain in OWN_DOMAIN and _callee(node) not in defined:
            _check_against_schema(node, opset)


def _check_value(node: NodeProto, attribute: AttributeProto) -> None:
    """An attribute holds what its type says; one of a function's may name one of its caller's instead."""
    held = {descriptor.name for descriptor, _ in attribute.ListFields()}.intersection(_FIELDS.values())
    own = _FIELDS.get(attribute.type, "")
    lacks = attribute.type in _OBJECTS and own not in held and not attribute.ref_attr_name
    if held - {own} or lacks or not own:
        kind = _word(attribute.type)
        raise UnsupportedModelError(
            f"{called(node)}: its attribute {attribute.name} says that it is of type {kind}, and holds "
            f"{' and '.join(sorted(held)) or 'nothing'}; {RUN_CHECKER}"
        )


def _word(kind: int) -> str:
    """What ONNX calls a type of an attribute."""
    known: dict[int, str] = {value: name for name, value in AttributeProto.AttributeType.items()}
    return known.get(kind, str(kind))


def _check_against_schema(node: NodeProto, opset: int) -> None:
    schema = _schema(node.op_type, opset)
    if schema is None:
        return  # an op of a newer ONNX, or none
    _check_arity(node, node.input, schema.inputs, (schema.min_input, schema.max_input), "inputs")
    _check_arity(node, node.output, schema.outputs[:1], (schema.min_output, schema.max_output), "outputs")
    given = {attribute.name: attribute.type for attribute in node.attribute}
    if len(given) < len(node.attribute):
        raise UnsupportedModelError(f"{called(node)} has an attribute twice; {RUN_CHECKER}")
    if missing := sorted(_required(node.op_type, opset) - given.keys()):
        raise UnsupportedModelError(f"{called(node)} lacks its attribute {', '.join(missing)}; {RUN_CHECKER}")
    for name, kind in given.items():
        if (known := _attribute_kinds(node.op_type).get(name)) and kind not in known:
            expected = " or ".join(map(_word, sorted(known)))
            raise UnsupportedModelError(
                f"{called(node)}: its attribute {name} is of type {_word(kind)}; expected {expected}: {RUN_CHECKER}"
            )


def _check_arity(
    node: NodeProto, names: Sequence[str], formal: Sequence[defs.OpSchema.FormalParameter], counts: tuple[int, int], what: str
) -> None:
    """As many as there may be, and with names for those that are neither optional nor one of any number."""
    least, most = counts
    single = defs.OpSchema.FormalParameterOption.Single
    unnamed = [name for name, parameter in zip(names, formal, strict=False) if not name and parameter.option == single]
    if unnamed or not least <= len(names) <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        raise UnsupportedModelError(
            f"{called(node)} has the {what} {list(names)}; expected {expected} of them, and names for the required ones: "
            f"{RUN_CHECKER}"
        )


@cache
def _schema(op_type: str, opset: int) -> defs.OpSchema | None:
    return defs.get_schema(op_type, opset, "") if defs.has(op_type, opset, "") else None


@cache
def _required(op_type: str, opset: int) -> frozenset[str]:
    """The attributes that a type cannot do without."""
    attributes = defs.get_schema(op_type, opset, "").attributes
    return frozenset(name for name, attribute in attributes.items() if attribute.required)


@cache
def _attribute_kinds(op_type: str) -> dict[str, set[int]]:
    """The types that attributes of an op have, or had in older opsets, which readers ask for too."""
    kinds: dict[str, set[int]] = {}
    for schema in _schemas().get(op_type, ()):
        for name, attribute in schema.attributes.items():
            kinds.setdefault(name, set()).add(int(attribute.type.value))  # type: ignore[attr-defined]
    return kinds


@cache
def _schemas() -> dict[str, list[defs.OpSchema]]:
    found: dict[str, list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema)
    return found


def _check_functions(functions: Sequence[FunctionProto]) -> None:
    """Raises UnsupportedModelError for two of a name, and where one calls itself: what inlines it would not end."""
    names = Counter(map(_key, functions))
    if twice := [_spelled(name) for name, count in names.items() if count > 1]:
        raise UnsupportedModelError(f"several functions are called {', '.join(twice)}; expected one: {RUN_CHECKER}")
    calls = {_key(each): {_callee(node) for node in with_inner(each.node)} for each in functions}
    while ready := {name for name, called in calls.items() if not called & calls.keys()}:
        for name in ready:
            del calls[name]
    if calls:
        cycle = ", ".join(map(_spelled, sorted(calls)))
        raise UnsupportedModelError(f"the functions {cycle} call themselves, or one another; ONNX has no recursion")


def _key(function: FunctionProto) -> Called:
    return function.domain, function.name, function.overload


def _callee(node: NodeProto) -> Called:
    return node.domain, node.op_type, node.overload


def _spelled(called: Called) -> str:
    domain, name, overload = called
    return f"{domain}::{name}{overload and f':{overload}'}"
