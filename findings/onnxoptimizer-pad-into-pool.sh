#!/usr/bin/env bash
# Guess:  onnxoptimizer's fuse_pad_into_pool leaves a Pad alone where the pool would not see the same numbers.
# So:     a Pad of zeros in front of a MaxPool is merged into the pool's `pads`, which pad with minus infinity: a border of zeros was
#         the maximum of negative inputs, and is no more. An AveragePool that leaves its own border out of the average gets
#         count_include_pad=1 with the Pad's zeros: now it counts both borders. Both come out valid, with the same shapes and other pixels.
# Hurts:  nets with nn.ZeroPad2d in front of a max pool (ports of TensorFlow and Darknet models): the file passes every check of shapes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 onnxoptimizer==0.4.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np, onnx, onnxoptimizer, onnxruntime
from importlib.metadata import version
from onnx import TensorProto, helper, numpy_helper


def model(pool, size, **attributes):
    nodes = [
        helper.make_node("Pad", ["x", "amounts"], ["padded"]),
        helper.make_node(pool, ["padded"], ["y"], kernel_shape=[3, 3], **attributes),
    ]
    amounts = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "amounts")
    graph = helper.make_graph(
        nodes, "pooled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, size, size])], [amounts])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def run(made):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"x": -np.ones((1, 1, 4, 4), np.float32)})[0][0, 0]


print("onnxoptimizer", version("onnxoptimizer"), "onnxruntime", onnxruntime.__version__)
for pool, size, attributes, corners in (("MaxPool", 4, {}, (0.0, -1.0)), ("AveragePool", 6, {"pads": [1, 1, 1, 1]}, (-0.25, -1 / 9))):
    before = model(pool, size, **attributes)
    after = onnxoptimizer.optimize(before, ["fuse_pad_into_pool"])
    onnx.checker.check_model(after, full_check=True)
    print(pool, "nodes", [node.op_type for node in after.graph.node], "corner before", run(before)[0, 0], "after", run(after)[0, 0])
    assert [node.op_type for node in after.graph.node] == [pool], "the pad stays now"
    assert np.allclose((run(before)[0, 0], run(after)[0, 0]), corners), "the corners changed"
print("as described: merged, and other pixels")
PY
