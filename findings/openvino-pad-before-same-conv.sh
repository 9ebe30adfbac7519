#!/usr/bin/env bash
# Guess:  a Pad before a Conv with auto_pad SAME_UPPER keeps its own rows and columns: the Conv pads what the Pad gave.
# So:     converting, OpenVINO takes the Pad into the Conv and keeps SAME_UPPER, which then counts from the size before the Pad:
#         of 6 + 2 columns 6 come out, not 8. A MaxPool in the Conv's place is right, and explicit pads are.
# Hurts:  nets converted from TensorFlow that pad by hand and then convolve with SAME: the output has another shape than the
#         model's own inference says.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

print("openvino", openvino.__version__, "onnxruntime", onnxruntime.__version__)
rng = np.random.default_rng(0)
x = rng.normal(size=(1, 4, 6, 6)).astype(np.float32)
weight, pads = rng.normal(size=(4, 4, 3, 3)).astype(np.float32), np.array([0, 0, 1, 1, 0, 0, 1, 1])


def shapes(node, tensors):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, s, s]) for n, s in (("x", 6), ("y", 8))]
    nodes = [helper.make_node("Pad", ["x", "p"], ["t"]), node]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(pads, "p"), *tensors])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = f"{sys.argv[1]}/model.onnx"
    onnx.save(model, path)
    converted = openvino.convert_model(path)
    compiled = openvino.compile_model(converted, "CPU")
    return (
        onnxruntime.InferenceSession(path).run(None, {"x": x})[0].shape,
        tuple(converted.output(0).shape),
        compiled({"x": x})[0].shape,
    )


w = [numpy_helper.from_array(weight, "w")]
found = {
    "Conv, SAME_UPPER": shapes(helper.make_node("Conv", ["t", "w"], ["y"], auto_pad="SAME_UPPER"), w),
    "Conv, pads of 1": shapes(helper.make_node("Conv", ["t", "w"], ["y"], pads=[1, 1, 1, 1]), w),
    "MaxPool, SAME_UPPER": shapes(helper.make_node("MaxPool", ["t"], ["y"], auto_pad="SAME_UPPER", kernel_shape=[3, 3]), []),
}
for name, (reference, converted, compiled) in found.items():
    print(f"{name}: ONNX Runtime {reference}, OpenVINO's model {converted}, compiled {compiled}")
wide, narrow = (1, 4, 8, 8), (1, 4, 6, 6)
assert found.pop("Conv, SAME_UPPER") == (wide, narrow, narrow)
assert set(found.values()) == {(wide, wide, wide)}, found
PY
