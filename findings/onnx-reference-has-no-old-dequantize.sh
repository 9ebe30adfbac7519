#!/usr/bin/env bash
# Guess:  onnx's ReferenceEvaluator runs every model that onnx.checker passes, at least with the ops of ONNX itself; and what runs
#         QuantizeLinear of an opset runs its twin.
# So:     it has QuantizeLinear of every opset, and DequantizeLinear of opset 19 and later alone. A valid model of opset 10, 13 or 17 with
#         a DequantizeLinear is refused before it runs, for want of an implementation; the same node stated as opset 19 runs.
# Hurts:  who evaluates, folds or compares int8 files with it: quantizers write QDQ models at the opset of the float model, often 13 to 17.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

print("onnx", onnx.__version__)


def outcome(op, opset):
    kinds = TensorProto.FLOAT, TensorProto.INT8
    source, result = kinds if op == "QuantizeLinear" else kinds[::-1]
    scale, zero = numpy_helper.from_array(np.float32(0.5), "scale"), numpy_helper.from_array(np.int8(1), "zero")
    ends = helper.make_tensor_value_info("x", source, [3]), helper.make_tensor_value_info("y", result, [3])
    graph = helper.make_graph([helper.make_node(op, ["x", "scale", "zero"], ["y"])], "g", ends[:1], ends[1:], [scale, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    x = np.array([1, 2, 3], np.float32 if source == TensorProto.FLOAT else np.int8)
    try:
        return ReferenceEvaluator(model).run(None, {"x": x})[0].tolist()
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


results = {}
for op in ("QuantizeLinear", "DequantizeLinear"):
    found = {opset: outcome(op, opset) for opset in (10, 13, 17, 19)}
    for opset, result in found.items():
        print(op, "opset", opset, result)
    results[op] = found
assert all(isinstance(result, list) for result in results["QuantizeLinear"].values()), results
assert [isinstance(result, list) for result in results["DequantizeLinear"].values()] == [False, False, False, True], results
PY
