#!/usr/bin/env bash
# Guess:  for Resize with align_corners, ONNX's own reference evaluator and ONNX Runtime give the same pixels.
# So:     only where the scale gives a whole number of pixels. 5 pixels at scale 1.5 are 7.5: the output has 7. ONNX Runtime aligns the
#         corners of the 7 pixels that there are, so that the last output is the last input; the reference evaluator aligns a corner
#         at 7.5 pixels that nobody has, and never reaches the last input. Linear, cubic and nearest alike.
# Hurts:  whoever takes the reference evaluator for the truth when a runtime or a compiler is tested, or folds constants with it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def last_pixels(scale):
    scales = numpy_helper.from_array(np.array([1, 1, 1, scale], np.float32), "scales")
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")
    graph = helper.make_graph(
        [node], "resize", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, int(5 * scale)])], [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    feeds = {"x": np.arange(5, dtype=np.float32).reshape(1, 1, 1, 5)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(ReferenceEvaluator(model).run(None, feeds)[0][0, 0, 0, -1]), float(session.run(None, feeds)[0][0, 0, 0, -1])


print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
whole, broken = last_pixels(2.0), last_pixels(1.5)
print("last pixel (reference, onnxruntime): scale 2.0", whole, " scale 1.5", broken)
assert np.allclose(whole, (4, 4)), "a whole number of pixels is no longer the same in both"
assert np.isclose(broken[1], 4) and broken[0] < 3.75, "the two agree now, or differ in another way"
print("as described: the reference evaluator stops before the last input pixel")
PY
