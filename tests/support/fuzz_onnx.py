"""What may be wrong in an ONNX model: each mutation changes a valid model in place, by the draws of a generator.

    MUTATIONS["cycle"](random.Random(0), model)

A mutation that finds nothing to change in a model leaves it as it is.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Mutation = Callable[[random.Random, ModelProto], None]
MUTATIONS: dict[str, Mutation] = {}
STAYS_VALID = frozenset({"nothing", "renamed everywhere", "long chain", "sparse tensor", "tensor listed as input"})
"""Mutations of which a model may be refused as one that is not read, and whose fused one must be proven all the same."""
INTEGERS = (0, 1, -1, 2, 3, 7, -7, 255, 2**31 - 1, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))
SIZES = (0, -1, -2, 1, 2**31, 2**40, 2**62, 2**63 - 1)
FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
WORDS = ("", "SAME_UPPER", "constant", "nearest", "x", "\n", "a" * 300, "../../w", "{0}", "é", "1")
OPS = (
    "Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "Add", "Mul", "Sum", "Concat", "Reshape",
    "Transpose", "Slice", "Gather", "Shape", "Split", "Pad", "Resize", "AveragePool", "MaxPool", "ReduceMean", "Softmax",
    "If", "Loop", "Scan", "Constant", "Identity", "Cast", "Expand", "Unsqueeze", "Squeeze", "Tile", "NonZero", "Range",
    "ScatterND", "GroupNormalization", "Einsum", "SequenceConstruct", "Optional", "StringConcat", "LSTM",
    "DequantizeLinear", "QLinearConv", "DepthToSpace", "NoSuchOp",
)  # fmt: skip


def mutation(function: Mutation) -> Mutation:
    """Enters a mutation under its name, with blanks."""
    MUTATIONS[function.__name__.replace("_", " ")] = function
    return function


def _graphs(model: ModelProto) -> list[GraphProto]:
    """The graph and all bodies in it."""

    def below(graph: GraphProto) -> Iterator[GraphProto]:
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from below(attribute.g)

    return list(below(model.graph))


def _graph(draw: random.Random, model: ModelProto) -> GraphProto:
    return draw.choice(_graphs(model)) if draw.random() < 0.4 else model.graph


def _nodes(draw: random.Random, model: ModelProto) -> Sequence[NodeProto]:
    """The nodes of the graph, of a body or of a function."""
    if model.functions and draw.random() < 0.4:
        return draw.choice(list(model.functions)).node
    return _graph(draw, model).node


def _node(draw: random.Random, model: ModelProto, has: Callable[[NodeProto], object] = lambda node: True) -> NodeProto:
    """A node that has something; an empty one, which is in no graph, where there is none."""
    return draw.choice([node for node in _nodes(draw, model) if has(node)] or [NodeProto(input=["?"], output=["?"])])


def _copied(node: NodeProto) -> NodeProto:
    """A node that may go into one of its own bodies."""
    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


def _names(model: ModelProto) -> list[str]:
    graph = model.graph
    given = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    return given + [name for node in graph.node for name in node.output] + ["", "no such value"]


def _tensor(draw: random.Random, model: ModelProto) -> TensorProto:
    return draw.choice([tensor for graph in _graphs(model) for tensor in graph.initializer] or [TensorProto()])


def _is_whole(tensor: TensorProto) -> bool:
    """Whether a tensor has data in the model, and they are what its shape and dtype take."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return False
    try:
        numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError):  # an earlier mutation made it wrong
        return False
    return bool(tensor.raw_data)


def _weights(draw: random.Random, model: ModelProto) -> TensorProto:
    """A tensor of floats with elements; an empty one, which is in no graph, where there is none."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
    found = [tensor for graph in _graphs(model) for tensor in graph.initializer if tensor.data_type in kinds]
    return draw.choice([tensor for tensor in found if _is_whole(tensor)] or [numpy_helper.from_array(np.ones(2, np.float32))])


def _value(draw: random.Random, model: ModelProto) -> ValueInfoProto:
    graph = _graph(draw, model)
    return draw.choice([*graph.input, *graph.output, *graph.value_info] or [ValueInfoProto()])


@mutation
def node_dropped(draw: random.Random, model: ModelProto) -> None:
    nodes = _nodes(draw, model)
    if nodes:
        del nodes[draw.randrange(len(nodes))]  # type: ignore[attr-defined]


@mutation
def node_twice(draw: random.Random, model: ModelProto) -> None:
    copied = _copied(_node(draw, model))
    _graph(draw, model).node.append(copied)


@mutation
def nodes_swapped(draw: random.Random, model: ModelProto) -> None:
    one, other = _node(draw, model), _node(draw, model)
    first, second = _copied(one), _copied(other)
    one.CopyFrom(second)
    other.CopyFrom(first)


@mutation
def cycle(draw: random.Random, model: ModelProto) -> None:
    node = _node(draw, model, lambda node: node.input)
    node.input[draw.randrange(len(node.input))] = draw.choice([name for n in _nodes(draw, model) for name in n.output] or ["?"])


@mutation
def dangling_input(draw: random.Random, model: ModelProto) -> None:
    node = _node(draw, model, lambda node: node.input)
    node.input[draw.randrange(len(node.input))] = "no such value"


@mutation
def other_input(draw: random.Random, model: ModelProto) -> None:
    node = _node(draw, model, lambda node: node.input)
    node.input[draw.randrange(len(node.input))] = draw.choice(_names(model))


@mutation
def duplicate_name(draw: random.Random, model: ModelProto) -> None:
    node = _node(draw, model, lambda node: node.output)
    node.output[draw.randrange(len(node.output))] = draw.choice(_names(model))


@mutation
def input_taken(draw: random.Random, model: ModelProto) -> None:
    node = _node(draw, model, lambda node: node.input)
    del node.input[draw.randrange(len(node.input)) :]


@mutation
def input_added(draw: random.Random, model: ModelProto) -> None:
    _node(draw, model).input.extend([draw.choice(_names(model)) for _ in range(draw.choice([1, 1, 2, 30]))])


@mutation
def output_taken(draw: random.Random, model: ModelProto) -> None:
    node = _node(draw, model, lambda node: node.output)
    node.output.pop()


@mutation
def output_added(draw: random.Random, model: ModelProto) -> None:
    _node(draw, model).output.append(draw.choice(["more", "", *_names(model)]))


@mutation
def other_op(draw: random.Random, model: ModelProto) -> None:
    _node(draw, model).op_type = draw.choice(OPS)


@mutation
def other_domain(draw: random.Random, model: ModelProto) -> None:
    _node(draw, model).domain = draw.choice(["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "own", "none such"])


@mutation
def other_opset(draw: random.Random, model: ModelProto) -> None:
    if model.opset_import:
        draw.choice(list(model.opset_import)).version = draw.choice([*INTEGERS, *range(7, 30)])


@mutation
def opset_missing_or_twice(draw: random.Random, model: ModelProto) -> None:
    if draw.random() < 0.3:
        del model.opset_import[:]
    else:
        model.opset_import.append(helper.make_opsetid(draw.choice(["", "ai.onnx", "own"]), draw.choice([7, 9, 13, 21])))


@mutation
def other_ir_version(draw: random.Random, model: ModelProto) -> None:
    model.ir_version = draw.choice([*INTEGERS, *range(1, 13)])


@mutation
def attribute_of_another_kind(draw: random.Random, model: ModelProto) -> None:
    attribute = draw.choice(_node(draw, model, lambda node: node.attribute).attribute or [AttributeProto(name="?")])
    attribute.CopyFrom(helper.make_attribute(attribute.name or "?", draw.choice(_VALUES)(draw)))


@mutation
def attribute_with_a_wrong_type(draw: random.Random, model: ModelProto) -> None:
    """Its type says something else than what it holds."""
    attribute = draw.choice(_node(draw, model, lambda node: node.attribute).attribute or [AttributeProto(name="?")])
    attribute.type = draw.choice(AttributeProto.AttributeType.values())


@mutation
def attribute_value(draw: random.Random, model: ModelProto) -> None:
    attribute = draw.choice(_node(draw, model, lambda node: node.attribute).attribute or [AttributeProto(name="?")])
    if attribute.ints and draw.random() < 0.7:
        attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(INTEGERS)
    elif attribute.ints:
        del attribute.ints[draw.randrange(len(attribute.ints)) :]
    elif attribute.HasField("i"):
        attribute.i = draw.choice(INTEGERS)
    elif attribute.HasField("f"):
        attribute.f = draw.choice(FLOATS)
    elif attribute.HasField("s"):
        attribute.s = draw.choice([b"\xff\xfe", *(word.encode() for word in WORDS)])


@mutation
def attribute_dropped(draw: random.Random, model: ModelProto) -> None:
    attributes = _node(draw, model, lambda node: node.attribute).attribute
    if attributes:
        del attributes[draw.randrange(len(attributes))]


@mutation
def attribute_added(draw: random.Random, model: ModelProto) -> None:
    names = (
        "axis", "axes", "pads", "strides", "dilations", "group", "kernel_shape", "auto_pad", "value", "perm", "body", "to",
        "mode", "keepdims", "epsilon", "start", "end", "split", "ceil_mode", "output_shape", "training_mode", "alpha",
    )  # fmt: skip
    _node(draw, model).attribute.append(helper.make_attribute(draw.choice(names), draw.choice(_VALUES)(draw)))


@mutation
def dims_that_lie(draw: random.Random, model: ModelProto) -> None:
    """The shape of a tensor says something else than its data hold."""
    tensor = _tensor(draw, model)
    if tensor.dims and draw.random() < 0.7:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice([*SIZES, 3, 5])
    elif tensor.dims and draw.random() < 0.5:
        tensor.dims.pop()
    else:
        tensor.dims.append(draw.choice(SIZES))


@mutation
def other_rank(draw: random.Random, model: ModelProto) -> None:
    """A tensor of another shape, which fits its data."""
    tensor = _tensor(draw, model)
    size = int(np.prod(tensor.dims))
    del tensor.dims[:]
    tensor.dims.extend(draw.choice([[size], [1, size], [size, 1, 1], [1] * 9 + [size], [] if size == 1 else [size]]))


@mutation
def other_dtype(draw: random.Random, model: ModelProto) -> None:
    """A tensor of another dtype, with data of that dtype."""
    tensor = _tensor(draw, model)
    if _is_whole(tensor):
        dtype = draw.choice([np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_])
        with np.errstate(all="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))


@mutation
def dtype_that_lies(draw: random.Random, model: ModelProto) -> None:
    """A tensor whose data are not of its dtype, or of a dtype that there is none."""
    _tensor(draw, model).data_type = draw.choice([*TensorProto.DataType.values(), 99, -1])


@mutation
def data_cut(draw: random.Random, model: ModelProto) -> None:
    tensor = _tensor(draw, model)
    tensor.raw_data = tensor.raw_data[: draw.randrange(len(tensor.raw_data) + 1)]


@mutation
def data_twice(draw: random.Random, model: ModelProto) -> None:
    """A tensor with elements in a second field."""
    tensor = _tensor(draw, model)
    draw.choice([tensor.float_data, tensor.double_data]).extend([1.0] * draw.choice([1, 4, 300]))
    draw.choice([tensor.int32_data, tensor.int64_data]).extend([-1] * draw.choice([1, 4, 300]))


@mutation
def tensor_dropped(draw: random.Random, model: ModelProto) -> None:
    tensors = _graph(draw, model).initializer
    if tensors:
        del tensors[draw.randrange(len(tensors))]


@mutation
def tensor_twice(draw: random.Random, model: ModelProto) -> None:
    tensor = _graph(draw, model).initializer.add()
    tensor.CopyFrom(_tensor(draw, model))


@mutation
def tensor_listed_as_input(draw: random.Random, model: ModelProto) -> None:
    tensor = _tensor(draw, model)
    model.graph.input.append(
        helper.make_tensor_value_info(tensor.name, max(1, tensor.data_type), draw.choice([tensor.dims, [3], None]))
    )


@mutation
def sparse_tensor(draw: random.Random, model: ModelProto) -> None:
    sparse, values = model.graph.sparse_initializer.add(), _tensor(draw, model)
    sparse.values.CopyFrom(values)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([draw.choice(INTEGERS) for _ in range(3)], np.int64)))
    sparse.dims.extend([draw.choice(SIZES)] * draw.choice([0, 1, 4]))
    if draw.random() < 0.5:
        sparse.values.name = draw.choice(_names(model))


@mutation
def not_a_number(draw: random.Random, model: ModelProto) -> None:
    """NaN, an infinity, a number out of range, among weights."""
    tensor = _weights(draw, model)
    array = numpy_helper.to_array(tensor).copy()
    with np.errstate(all="ignore"):
        array.flat[[draw.randrange(array.size) for _ in range(draw.choice([1, 9]))]] = draw.choice(FLOATS)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutation
def negative_variance(draw: random.Random, model: ModelProto) -> None:
    """The last input of a norm below zero, some of it or all."""
    node = _node(draw, model, lambda node: node.op_type == "BatchNormalization" and len(node.input) == 5)
    for tensor in model.graph.initializer:
        if tensor.name == node.input[-1] and _is_whole(tensor):
            array = numpy_helper.to_array(tensor).copy()
            array[draw.randrange(array.shape[0]) :] *= draw.choice([-1, 0])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutation
def overflow_when_folded(draw: random.Random, model: ModelProto) -> None:
    """Weights that fit their dtype, but not once they are multiplied; or that vanish."""
    for _ in range(draw.choice([1, 3])):
        tensor = _weights(draw, model)
        array = numpy_helper.to_array(tensor)
        limits = np.finfo(array.dtype)
        scale = draw.choice([float(limits.max) / 4, float(limits.max) ** 0.6, float(limits.tiny)])
        with np.errstate(all="ignore"):
            tensor.CopyFrom(numpy_helper.from_array((array * np.asarray(scale, array.dtype)).astype(array.dtype), tensor.name))


@mutation
def external_data(draw: random.Random, model: ModelProto) -> None:
    """A tensor whose elements stand in a file: outside the model's folder, missing, too short, at an odd place."""
    tensor = _tensor(draw, model)
    entries = {
        "location": draw.choice(
            ["weights.bin", "../weights.bin", "/etc/hostname", "no such file", "", ".", "weights.bin/..", "\0"]
        ),
        "offset": draw.choice(["0", "-1", "4", "8192", str(2**62), "x", ""]),
        "length": draw.choice(["0", "-4", "16", str(2**62), "1e3", ""]),
        "basepath": "/etc",
    }
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key in draw.sample(list(entries), draw.choice([0, 1, 2, 3, 4])) or ["location"]:
        tensor.external_data.add(key=key, value=entries[key])
    if draw.random() < 0.3 and tensor.dims:
        tensor.dims[0] = draw.choice(SIZES)


@mutation
def shape_of_a_value(draw: random.Random, model: ModelProto) -> None:
    """An input, an output or a value between has odd sizes, or another rank."""
    shape = _value(draw, model).type.tensor_type.shape
    if shape.dim and draw.random() < 0.7:
        dim = draw.choice(list(shape.dim))
        if draw.random() < 0.7:
            dim.dim_value = draw.choice([*SIZES, 3])
        else:
            dim.dim_param = draw.choice(["N", "", "C", "-1", "2*N"])
    elif draw.random() < 0.5:
        shape.dim.add(dim_value=draw.choice(SIZES))
    elif shape.dim:
        shape.dim.pop()


@mutation
def type_of_a_value(draw: random.Random, model: ModelProto) -> None:
    value = _value(draw, model)
    kind = draw.choice(["dtype", "none", "sequence", "optional", "map", "sparse"])
    if kind == "dtype":
        value.type.tensor_type.elem_type = draw.choice([*TensorProto.DataType.values(), 99, -1])
        return
    value.type.Clear()
    if kind == "sequence":
        value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind == "optional":
        value.type.optional_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind == "map":
        value.type.map_type.key_type = TensorProto.STRING
    elif kind == "sparse":
        value.type.sparse_tensor_type.elem_type = TensorProto.FLOAT


@mutation
def value_stated(draw: random.Random, model: ModelProto) -> None:
    """The file says a type of a value, and not the right one."""
    shape = [draw.choice([*SIZES, 3, 4]) for _ in range(draw.choice([0, 1, 4, 5]))]
    model.graph.value_info.append(helper.make_tensor_value_info(draw.choice(_names(model)), draw.choice([1, 7, 10, 99]), shape))


@mutation
def inputs_and_outputs(draw: random.Random, model: ModelProto) -> None:
    values = draw.choice([model.graph.input, model.graph.output])
    what = draw.choice(["dropped", "twice", "renamed", "none", "another"])
    if what == "none":
        del values[:]
    elif what == "another":
        values.append(helper.make_tensor_value_info(draw.choice(_names(model)), TensorProto.FLOAT, [1]))
    elif values and what == "dropped":
        del values[draw.randrange(len(values))]
    elif values and what == "twice":
        values.append(draw.choice(list(values)))
    elif values:
        draw.choice(list(values)).name = draw.choice(_names(model))


@mutation
def renamed_everywhere(draw: random.Random, model: ModelProto) -> None:
    """A value, a node or a weight with a name that looks like something else; the model stays valid."""
    graph, old = model.graph, draw.choice(_names(model))
    new = draw.choice([*WORDS, "a:0", "a.b", "y/1", "class", " "])
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new if value.name == old else value.name
    for nodes in (each.node for each in _graphs(model)):
        for node in nodes:
            for field in (node.input, node.output):
                field[:] = [new if name == old else name for name in field]
            node.name = draw.choice([node.name, "", new])


@mutation
def deep_bodies(draw: random.Random, model: ModelProto) -> None:
    """A body in a body in a body, as deep as protobuf reads, or deeper."""
    for _ in range(draw.choice([2, 8, 30, 60])):
        outer = ModelProto()
        outer.CopyFrom(model)
        node = helper.make_node("If", [draw.choice(_names(model))], [value.name for value in model.graph.output])
        body = node.attribute.add(name="then_branch", type=AttributeProto.GRAPH)
        try:
            body.g.CopyFrom(model.graph)
            del body.g.input[:]
            del outer.graph.node[:]
            outer.graph.node.append(node)
        except DecodeError:  # protobuf copies no deeper ones, nor reads them
            return
        if outer.ByteSize() > 2**20:
            return
        model.CopyFrom(outer)


@mutation
def long_chain(draw: random.Random, model: ModelProto) -> None:
    """Hundreds of nodes in a row before what reads the first input."""
    if model.graph.input:
        first, count = model.graph.input[0].name, draw.choice([50, 100, 300])
        names = [first, *(f"{first}.{place}" for place in range(count))]
        op = draw.choice(["Identity", "Relu", "Shape", "Neg"])
        chain = [helper.make_node(op, [before], [after]) for before, after in pairwise(names)]
        rest = list(model.graph.node)
        for node in rest:
            node.input[:] = [names[-1] if name == first else name for name in node.input]
        del model.graph.node[:]
        model.graph.node.extend([*chain, *rest])


@mutation
def functions_odd(draw: random.Random, model: ModelProto) -> None:
    """A function with other inputs, without its own opsets, twice, called where it is not defined, or as one of ONNX's own."""
    if not model.functions:
        model.functions.append(helper.make_function(draw.choice(["", "own"]), draw.choice(OPS), ["a"], ["b"], [], []))
    function = draw.choice(list(model.functions))
    what = draw.choice(["inputs", "outputs", "opsets", "twice", "name", "domain", "empty", "attributes"])
    if what in ("inputs", "outputs"):
        (function.input if what == "inputs" else function.output)[:] = draw.sample(_names(model), draw.choice([0, 1, 3]))
    elif what == "opsets":
        del function.opset_import[:]
    elif what == "twice":
        model.functions.append(function)
    elif what == "name":
        function.name = draw.choice([*OPS, ""])
    elif what == "domain":
        function.domain = draw.choice(["", "ai.onnx", "none such"])
    elif what == "empty":
        del function.node[:]
    else:
        function.attribute.append(draw.choice(["alpha", "", "pads"]))


@mutation
def recursive_function(draw: random.Random, model: ModelProto) -> None:
    """A function that calls itself, by itself or through another; the graph need not call it."""
    names = draw.choice([["Again"], ["Again", "Other"]])
    for name, called in zip(names, names[1:] + names[:1], strict=True):
        body = [helper.make_node(called, ["a"], ["b"], domain="own")]
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], body, [helper.make_opsetid("own", 1)]))
    if draw.random() < 0.5:
        node = _node(draw, model, lambda node: node.input and node.output)
        node.CopyFrom(helper.make_node("Again", node.input[:1], node.output[:1], domain="own"))


@mutation
def constant_of_great_size(draw: random.Random, model: ModelProto) -> None:
    """A weight is computed, and would not fit in memory."""
    tensor = _tensor(draw, model)
    name, size = tensor.name, draw.choice([2**20, 2**31, 2**40, -1, 2**63 - 1])
    sizes = numpy_helper.from_array(np.array([size] * draw.choice([1, 1, 2, 4]), np.int64), f"{name}.sizes")
    model.graph.initializer.append(sizes)
    tensor.name = f"{name}.one"
    op, given = draw.choice(
        [("ConstantOfShape", [sizes.name]), ("Expand", [tensor.name, sizes.name]), ("Tile", [tensor.name, sizes.name])]
    )
    nodes = [helper.make_node(op, given, [name]), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@mutation
def nothing(draw: random.Random, model: ModelProto) -> None:
    """A valid model."""


_VALUES: Sequence[Callable[[random.Random], object]] = (
    lambda draw: draw.choice(INTEGERS),
    lambda draw: draw.choice(FLOATS),
    lambda draw: draw.choice(WORDS),
    lambda draw: [draw.choice(INTEGERS) for _ in range(draw.choice([1, 2, 4, 5]))],
    lambda draw: [draw.choice(FLOATS) for _ in range(draw.choice([1, 2, 4]))],
    lambda draw: [draw.choice(WORDS) for _ in range(draw.choice([1, 2]))],
    lambda draw: numpy_helper.from_array(np.ones(draw.choice([(), (1,), (4, 4, 1, 1)]), draw.choice([np.float32, np.int64]))),
    lambda draw: GraphProto(node=[helper.make_node(draw.choice(OPS), ["x"], ["q"])]),
)
"""Values of every kind that an attribute can have."""


def mutated(draw: random.Random, model: ModelProto, name: str) -> ModelProto:
    """A copy with a mutation, and now and then with further ones, unless it is one of `STAYS_VALID`."""
    changed = ModelProto()
    changed.CopyFrom(model)
    further = [] if name in STAYS_VALID else draw.sample(sorted(MUTATIONS), draw.choice([0, 0, 0, 1, 2]))
    for each in (name, *further):
        MUTATIONS[each](draw, changed)
    return changed
