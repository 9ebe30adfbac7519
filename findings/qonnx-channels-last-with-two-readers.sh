#!/usr/bin/env bash
# Guess:  qonnx's ConvertToChannelsLastAndClean moves the transposition behind a Conv past what follows only where nothing else reads
#         the Conv, or moves it on every way.
# So:     of two readers one gets the tensor turned back and the other as it lies, channels last, and the sum of both adds the two. With
#         as many channels as rows and columns all shapes fit, and the numbers are wrong, with no word; with another
#         number of channels the rewritten model does not run. A Conv with one reader is right.
# Hurts:  who brings nets with a skip round an activation or a scale to FINN or hls4ml, which work on channels last.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check qonnx==1.0.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2>"$folder/said" <<'PY' || { tail -5 "$folder/said"; exit 1; }
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.util.cleanup import cleanup_model

print("qonnx", version("qonnx"), "onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
rng = np.random.default_rng(0)
conv = {"kernel_shape": [1, 1], "pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1], "group": 1}
behind = {
    "one reader": [helper.make_node("Mul", ["u", "two"], ["y"])],
    "two readers": [helper.make_node("Mul", ["u", "two"], ["t"]), helper.make_node("Add", ["t", "u"], ["y"])],
}
found = {}
for channels in (6, 8):
    for case, nodes in behind.items():
        weight = rng.normal(size=(channels, 4, 1, 1)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["u"], **conv), *nodes],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 6, 6])],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32([2]), "two")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        x = rng.normal(size=(1, 4, 6, 6)).astype(np.float32)
        want = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
        rewritten = cleanup_model(ModelWrapper(model)).transform(ConvertToChannelsLastAndClean())
        ops = [node.op_type for node in rewritten.graph.node]
        try:
            (got,) = execute_onnx(rewritten, {rewritten.graph.input[0].name: x}).values()
            found[channels, case] = "right" if got.shape == want.shape and np.allclose(got, want, atol=1e-4) else "wrong"
        except Exception as error:
            found[channels, case] = f"raises {type(error).__name__}"
        print(f"{channels} channels of 6x6, {case}: {found[channels, case]}; {ops}")
assert found[6, "one reader"] == found[8, "one reader"] == "right", found
assert found[6, "two readers"] == "wrong" and found[8, "two readers"].startswith("raises"), found
PY
