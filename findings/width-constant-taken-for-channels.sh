#!/usr/bin/env bash
# Guess:  an optimiser that folds a constant behind a Conv into its weights looks at which axis the constant lies along: one of
#         shape (W,) lies along the width, whatever the number of channels is.
# So:     where width and channels are equally many, onnxslim folds a Mul by such a constant into the Conv's output channels,
#         and MNN's converter an Add. The numbers change, nothing is said. Where they differ both leave it alone.
# Hurts:  nets with weights or positions per column (OCR, audio, axial attention) whose width happens to be their number of
#         channels.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxslim==0.1.98 MNN==3.6.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import MNN
import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx import TensorProto, helper, numpy_helper

print("onnxslim", version("onnxslim"), "MNN", version("MNN"), "onnxruntime", onnxruntime.__version__)
folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
weight, constant = rng.normal(size=(4, 4, 1, 1)).astype(np.float32), (rng.normal(size=4) + 3).astype(np.float32)


def run(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def by_mnn(path, x):
    written = folder / "model.mnn"
    converter = Path(sys.executable).with_name("mnnconvert")
    command = [converter, "-f", "ONNX", "--modelFile", path, "--MNNModel", written, "--bizCode", "x"]
    subprocess.run(command, check=True, capture_output=True)
    net = MNN.nn.load_module_from_file(str(written), ["x"], ["y"])
    result = net.forward([MNN.expr.const(x.copy(), list(x.shape), MNN.expr.NCHW)])[0]
    return np.array(MNN.expr.convert(result, MNN.expr.NCHW).read())


found = {}
for op in ("Mul", "Add"):
    for channels in (4, 5):
        w = numpy_helper.from_array(np.resize(weight, (channels, 4, 1, 1)), "w")
        nodes = [helper.make_node("Conv", ["x", "w"], ["u"]), helper.make_node(op, ["u", "k"], ["y"])]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 3, 4]) for n, c in (("x", 4), ("y", channels))]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [w, numpy_helper.from_array(constant, "k")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / "model.onnx")
        x = rng.normal(size=(1, 4, 3, 4)).astype(np.float32)
        want = run(model, x)
        for tool, result in (("onnxslim", run(onnxslim.slim(model), x)), ("MNN", by_mnn(folder / "model.onnx", x))):
            found[op, channels, tool] = bool(np.allclose(result, want, atol=1e-3))
            print(op, "a constant of width 4 behind", channels, "channels:", tool, "right" if found[op, channels, tool] else "wrong")
assert [key for key, right in found.items() if not right] == [("Mul", 4, "onnxslim"), ("Add", 4, "MNN")], found
PY
