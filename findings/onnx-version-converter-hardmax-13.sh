#!/usr/bin/env bash
# Guess:  onnx's version converter keeps what a model computes on its way from opset 12 to 13, where Softmax, LogSoftmax and
#         Hardmax changed from flattened rows to one axis together.
# So:     it puts Flatten and Reshape round Softmax and LogSoftmax, and leaves Hardmax as it was, which then means something
#         else: one maximum in each column instead of one in the whole row.
# Hurts:  old classifiers and pointer nets with a Hardmax whose axis is not the last, raised to a newer opset.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, version_converter

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
x = np.random.default_rng(0).normal(size=(1, 4, 6)).astype(np.float32)


def run(model):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


kept = {}
for op in ("Softmax", "LogSoftmax", "Hardmax"):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 6]) for n in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], axis=1)], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    raised = version_converter.convert_version(model, 13)
    kept[op] = bool(np.allclose(run(model), run(raised), atol=1e-6))
    print(op, "12 -> 13:", [node.op_type for node in raised.graph.node], "the same numbers" if kept[op] else "other numbers")
assert kept == {"Softmax": True, "LogSoftmax": True, "Hardmax": False}, kept
PY
