#!/usr/bin/env bash
# Guess:  OpenCV 5's dnn, with its new engine, computes what an ONNX node says, or refuses to read it, as it does
#         MeanVarianceNormalization and LpPool.
# So:     eight are read past without a word. PRelu takes a slope for each column as one for each channel. ReduceL1 and ReduceL2 with
#         noop_with_empty_axes and no axes reduce everything. Resize of opset 10 is computed as opset 11 (half_pixel, not asymmetric), and
#         antialias is not read; a scale for the channels is left out. ConvTranspose's output_shape is not read, and its SAME_UPPER comes out
#         too small. A MaxPool or an AveragePool with ceil_mode gets one more column where the last window begins in the padding. A slope for
#         each channel, ReduceSum, Mean and Max, opset 11, and explicit pads are right.
# Hurts:  who moves a net to OpenCV 5 and checks that it loads: activations over positions, decoders that state the size of their output,
#         detectors of opset 10, and preprocessing with antialias.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" 2>"$folder/said" <<'PY' || { tail -5 "$folder/said"; exit 1; }
import sys

import cv2, numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

print("opencv", cv2.__version__, "onnxruntime", onnxruntime.__version__)
rng = np.random.default_rng(0)
written = sys.argv[1] + "/model.onnx"
slope, weight = rng.normal(size=4), rng.normal(size=(4, 5, 3, 3))
twice, half, noop = [1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 0.5, 0.5], {"noop_with_empty_axes": 1}
window, late = {"kernel_shape": [3, 2], "pads": [1] * 4}, {"strides": [2, 3], "ceil_mode": 1}
cases = {  # name: op, opset, inputs after x, attributes, is right
    "PRelu, a slope for each channel": ("PRelu", 17, [slope.reshape(4, 1, 1)], {}, True),
    "PRelu, a slope for each column": ("PRelu", 17, [slope], {}, False),
    "ReduceL1, no axes, noop": ("ReduceL1", 18, [], noop, False),
    "ReduceL2, no axes, noop": ("ReduceL2", 18, [], noop, False),
    "ReduceSum, no axes, noop": ("ReduceSum", 18, [], noop, True),
    "ReduceMean, no axes, noop": ("ReduceMean", 18, [], noop, True),
    "ReduceMax, no axes, noop": ("ReduceMax", 18, [], noop, True),
    "Resize of opset 10": ("Resize", 10, [twice], {"mode": "linear"}, False),
    "Resize of opset 11": ("Resize", 11, [np.zeros(0), twice], {"mode": "linear"}, True),
    "Resize, antialias=0": ("Resize", 18, [None, half], {"mode": "linear", "antialias": 0}, True),
    "Resize, antialias=1": ("Resize", 18, [None, half], {"mode": "linear", "antialias": 1}, False),
    "Resize of the channels": ("Resize", 18, [None, [1.0, 2.0, 1.0, 1.0]], {"mode": "nearest"}, False),
    "ConvTranspose, pads and output_padding": ("ConvTranspose", 17, [weight], {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}, True),
    "ConvTranspose, output_shape": ("ConvTranspose", 17, [weight], {"strides": [2, 2], "output_shape": [8, 8]}, False),
    "ConvTranspose, SAME_UPPER": ("ConvTranspose", 17, [weight], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, False),
    "MaxPool, ceil_mode, last window inside": ("MaxPool", 17, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, True),
    "MaxPool, ceil_mode, last window in the padding": ("MaxPool", 17, [], window | late, False),
    "AveragePool, ceil_mode, last window in the padding": ("AveragePool", 17, [], window | late, False),
}
wrong = []
for name, (op, opset, inputs, attributes, right) in cases.items():
    x = rng.normal(size=(1, 4, 5, 5) if op.endswith("Pool") else (1, 4, 4, 4)).astype(np.float32)
    names = ["x"] + [f"c{n}" if c is not None else "" for n, c in enumerate(inputs)]
    inits = [numpy_helper.from_array(np.asarray(c, np.float32), f"c{n}") for n, c in enumerate(inputs) if c is not None]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], "g", ends[:1], ends[1:], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, written)
    want = onnxruntime.InferenceSession(written).run(None, {"x": x})[0]
    net = cv2.dnn.readNetFromONNX(written)
    net.setInput(x)
    got = net.forward()
    if got.shape != want.shape:
        said = f"{got.shape}, not {want.shape}"
    else:
        off = float(np.abs(got - want).max())
        said = "right" if off < 1e-4 else f"off by {off:.2f} of {np.abs(want).max():.2f}"
    print(f"{name}: {said}")
    if (said == "right") != right:
        wrong.append(name)
assert not wrong, wrong
PY
