#!/usr/bin/env bash
# Guess:  onnx's ReferenceEvaluator divides by the sum of absolute values for LpNormalization with p=1, as the operator's text
#         says.
# So:     it divides by the plain sum: with elements of both signs the results have another scale and may have another sign. p=2
#         is right.
# Hurts:  who takes the reference for the truth in a test of a backend or a pass: the backend that is right fails.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
x = np.array([[3.0, -1.0, 1.0], [-2.0, 1.0, -1.0]], np.float32)
for p in (1, 2):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("LpNormalization", ["x"], ["y"], axis=1, p=p)], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    reference = ReferenceEvaluator(model).run(None, {"x": x})[0]
    runtime = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    print("p", p, "reference", reference.tolist(), "ONNX Runtime", runtime.tolist())
    norm = (np.abs(x) ** p).sum(1, keepdims=True) ** (1 / p)
    assert np.allclose(runtime, x / norm)
    assert np.allclose(reference, x / (x.sum(1, keepdims=True) if p == 1 else norm))
PY
