#!/usr/bin/env bash
# Guess:  who reads a model of opset 11 computes its Softmax as opset 11 defines it: the tensor is a matrix, flattened at axis
#         (1 if not given), and each row sums to one.
# So:     onnx's own ReferenceEvaluator (Softmax, LogSoftmax and Hardmax) and OpenVINO (Softmax alone; its LogSoftmax is right)
#         compute it along that one axis, as opset 13 says. ONNX Runtime keeps to the opset.
# Hurts:  who compares a converted file of opset 11 or 12 against the reference, or serves one: wherever axis is not the last,
#         each sums to one along another set of elements.
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
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

print("onnx", onnx.__version__, "openvino", openvino.__version__, "onnxruntime", onnxruntime.__version__)
x = np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype(np.float32)


def outputs(op, opset):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 6, 6]) for n in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], axis=1)], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    path = f"{sys.argv[1]}/model.onnx"
    onnx.save(model, path)
    return {
        "ONNX Runtime": onnxruntime.InferenceSession(path).run(None, {"x": x})[0],
        "reference": ReferenceEvaluator(model).run(None, {"x": x})[0],
        "OpenVINO": openvino.compile_model(openvino.convert_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"x": x})[0],
    }


whole, channels = (np.exp(x) / np.exp(x).sum(axes, keepdims=True) for axes in ((1, 2, 3), 1))
old = {"Softmax": whole, "LogSoftmax": np.log(whole), "Hardmax": (x == x.max()).astype(np.float32)}
new = {"Softmax": channels, "LogSoftmax": np.log(channels), "Hardmax": (x == x.max(1, keepdims=True)).astype(np.float32)}
readings = {}
for op in old:
    for opset in (11, 13):
        for engine, found in outputs(op, opset).items():
            reading = [name for name, want in (("old", old), ("new", new)) if np.allclose(found, want[op], atol=1e-5)]
            print(op, "opset", opset, engine, "as", *reading)
            readings[op, opset, engine] = reading
wrong = {(op, engine) for (op, opset, engine), reading in readings.items() if reading != ["old" if opset == 11 else "new"]}
assert wrong == {("Softmax", "OpenVINO"), *((op, "reference") for op in old)}, wrong
PY
