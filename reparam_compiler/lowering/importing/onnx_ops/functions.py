"""Ops that are functions of ONNX itself: the body that ONNX's own definition gives stands in their place."""

from onnx import helper, inliner

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import instead_of
from reparam_compiler.lowering.importing.onnx_ops.walk import walk


@instead_of("Attention", tvm="takes it for the one of com.microsoft")
@instead_of("RotaryEmbedding", "CenterCropPad", tvm="does not know it")
def body(graph: Graph, node: Node) -> list[str]:
    """The body of the function, for inputs of these types."""
    named = [name for name in dict.fromkeys(node.inputs) if name]
    outputs = [f"result:{index}" for index in range(node.outputs)]
    call = helper.make_node(node.op, node.inputs, outputs, **node.attrs)
    inputs = [helper.make_value_info(name, graph.types[name]) for name in named]
    made = helper.make_graph([call], node.op, inputs, [helper.make_empty_tensor_value_info(name) for name in outputs])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=10)
    found = inliner.inline_selected_functions(model, [("", node.op)], exclude=False, inline_schema_functions=True).graph
    if [inner.op_type for inner in found.node] == [node.op]:
        raise node.refusal("ONNX has no body for it with these inputs")
    names = {"": "", **{name: name for name in named}}
    walk(graph, found, names, graph.opset)
    return [names[value.name] for value in found.output]
