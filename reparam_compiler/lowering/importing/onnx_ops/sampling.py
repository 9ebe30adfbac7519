"""What samples an image at points that the model computes."""

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import instead_of


@instead_of("RoiAlign", tvm="moves boxes before it scales them, takes other points where it may choose, and another largest")
def roi_align(graph: Graph, node: Node) -> str:
    """TVM's own mean over a fixed number of points, of boxes scaled beforehand."""
    mode, ratio = node.attrs.get("mode", "avg"), node.attrs.get("sampling_ratio", 0)
    if mode != "avg" or not ratio:
        wanted = "expected mode=avg and a sampling_ratio; export it so, or cut the model before it"
        raise node.refusal(f"mode={mode}, sampling_ratio={ratio}", wanted)
    scale = node.attrs.get("spatial_scale", 1.0)
    boxes = node.inputs[1]
    boxes = boxes if scale == 1 else graph.emit("Mul", boxes, graph.like(scale, boxes))
    attrs = {name: value for name, value in node.attrs.items() if name != "spatial_scale"}
    return graph.keep(Node("RoiAlign", [node.inputs[0], boxes, node.inputs[2]], attrs, 1, node.name))[0]
