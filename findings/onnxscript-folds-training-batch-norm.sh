#!/usr/bin/env bash
# Guess:  onnxscript's rewriter folds a BatchNormalization into the Conv before it where it uses stored statistics, and only there.
# So:     training_mode=1 is not looked at: a norm over the batch's own statistics is folded with the stored ones. The rewritten model
#         is valid and gives other numbers, with no warning.
# Hurts:  exports that keep norms in training mode on purpose: test-time adaptation, on-device training, style transfer, GAN samplers.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np, onnx, onnxruntime
from importlib.metadata import version
from onnx import TensorProto, helper, numpy_helper
from onnxscript import rewriter

weights = {"w": np.ones((2, 1, 1, 1)), "scale": np.ones(2), "shift": np.zeros(2), "mean": np.full(2, 5.0), "var": np.full(2, 4.0)}
nodes = [
    helper.make_node("Conv", ["x", "w"], ["c"]),
    helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y", "mean_out", "var_out"], training_mode=1),
]
graph = helper.make_graph(
    nodes, "trains",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1, 2])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 1, 2])],
    [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()])
before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(before, full_check=True)


def run(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(["y"], {"x": np.array([[[[-1, 1]]]], np.float32)})[0].reshape(2, 2)[0]


after = rewriter.rewrite(before)
onnx.checker.check_model(after, full_check=True)
print("onnxscript", version("onnxscript"), "onnxruntime", onnxruntime.__version__)
print("nodes before", [n.op_type for n in before.graph.node], "after", [n.op_type for n in after.graph.node])
print("y before", run(before), "after", run(after))
assert [n.op_type for n in after.graph.node] == ["Conv"], "the norm stays now"
assert np.allclose(run(before), [-1, 1], atol=1e-4) and np.allclose(run(after), [-3, -2], atol=1e-4), "the numbers changed"
print("as described: folded, and other numbers")
PY
