#!/usr/bin/env bash
# Guess:  onnxscript's optimizer makes one Clip of two only where the result is the same, or takes care of the bounds.
# So:     Clip(-1, 1) before Clip(2, 3) is 2 everywhere; it becomes a Clip whose lower bound is above its upper, which gives 1
#         in ONNX Runtime. A Clip below zero before a Relu becomes a bound below zero in the same way. Ranges that overlap are
#         right.
# Hurts:  whoever runs it over a file, and whoever exports: torch.onnx.export(dynamo=True) runs it unless told not to. Hard
#         limits written twice, a quantiser's range behind an activation's.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxscript==0.7.2 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import numpy as np
import onnx
import onnxruntime
import onnxscript
import onnxscript.optimizer
from onnx import TensorProto, helper, numpy_helper

print("onnxscript", onnxscript.__version__, "onnxruntime", onnxruntime.__version__)
x = np.linspace(-4, 4, 9, dtype=np.float32)


def run(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def both(nodes, **bounds):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [9]) for n in "xy"]
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in bounds.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    rewritten = onnxscript.optimizer.optimize(model)
    return run(model), run(rewritten), [node.op_type for node in rewritten.graph.node]


clip, second, relu = (
    helper.make_node("Clip", ["x", "a", "b"], ["t"]),
    helper.make_node("Clip", ["t", "c", "d"], ["y"]),
    helper.make_node("Relu", ["t"], ["y"]),
)
same = {}
for name, nodes, bounds in (
    ("overlap", [clip, second], dict(a=-1, b=1, c=0, d=3)),
    ("disjoint", [clip, second], dict(a=-1, b=1, c=2, d=3)),
    ("below zero, then Relu", [clip, relu], dict(a=-1, b=-0.5)),
):
    before, after, ops = both(nodes, **bounds)
    same[name] = bool(np.array_equal(before, after))
    print(f"{name}: before {sorted(set(before.tolist()))}, after {sorted(set(after.tolist()))}, nodes {ops}")
assert same == {"overlap": True, "disjoint": False, "below zero, then Relu": False}, same
PY
