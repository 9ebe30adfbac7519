#!/usr/bin/env bash
# Guess:  onnx.version_converter, asked for a newer opset, gives a model that computes the same; what it cannot convert, it refuses.
# So:     a Resize of opset 10 comes out in opset 11 and later with no coordinate_transformation_mode. Opset 10 maps coordinates
#         "asymmetric"; from 11 on the default is "half_pixel". The converted model is valid, has the same shapes, and other pixels.
# Hurts:  whoever lifts an old detector or segmentation net (torch 1.x exports, Darknet and Keras converters wrote opset 10) to a newer
#         opset before quantizing or compiling it. Cure: set coordinate_transformation_mode="asymmetric" (and nearest_mode="floor").
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter


def model(mode):
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", "scales"], ["y"], mode=mode)], "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])], [scales])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(made):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array([[[[0, 4], [8, 12]]]], np.float32)})[0][0, 0]


print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
before = model("linear")
after = version_converter.convert_version(before, 13)
onnx.checker.check_model(after, full_check=True)
node = next(node for node in after.graph.node if node.op_type == "Resize")
print("attributes after the conversion:", {a.name: helper.get_attribute_value(a) for a in node.attribute})
print("first row, opset 10:", run(before)[0], " opset 13:", run(after)[0])
assert not any(a.name == "coordinate_transformation_mode" for a in node.attribute), "the converter states the mode now"
assert np.array_equal(run(before)[0], [0, 2, 4, 4]) and np.array_equal(run(after)[0], [0, 1, 3, 4]), "the pixels changed"
print("as described: valid, and other pixels")
PY
