#!/usr/bin/env bash
# Guess:  OpenCV's dnn pads a Conv or a pool with auto_pad SAME_UPPER or SAME_LOWER as ONNX says: the odd pixel goes behind in the first and
#         before in the second.
# So:     in OpenCV 5 a SAME_UPPER of an odd window (3x3, stride 2, even size) has it before, and a SAME_LOWER of an even window has
#         it behind. The shapes are right and the numbers are another picture's, shifted by a pixel. The same with explicit pads is right,
#         and SAME is right where nothing odd is left.
# Hurts:  who runs nets from TensorFlow or Keras there: the first layer of a MobileNet or an EfficientNet is a 3x3 with stride 2 and
#         SAME on 224 pixels, and every later stage begins with one. Accuracy falls as if the weights were worse.
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


def off(op, kernel, stride, size, padding):
    """How far OpenCV is from ONNX Runtime, as a share of the largest output; the shapes agree."""
    x, w = rng.normal(size=(1, 2, size, size)).astype(np.float32), rng.normal(size=(2, 2, kernel, kernel)).astype(np.float32)
    kwargs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, **padding}
    node = helper.make_node(op, ["x", "w"] if op == "Conv" else ["x"], ["y"], **kwargs)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x.shape), ("y", (1, 2, "h", "w")))]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")] if op == "Conv" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, written)
    want = onnxruntime.InferenceSession(written).run(None, {"x": x})[0]
    net = cv2.dnn.readNetFromONNX(written)
    net.setInput(x)
    got = net.forward()
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(got - want).max() / np.abs(want).max())


wrong = set()
for op in ("Conv", "MaxPool", "AveragePool"):
    for kernel, stride, size in ((3, 1, 8), (3, 2, 7), (3, 2, 8), (3, 3, 8), (2, 1, 8), (4, 1, 8)):
        for mode in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            first, last = (total // 2, total - total // 2) if mode == "SAME_UPPER" else (total - total // 2, total // 2)
            same, explicit = off(op, kernel, stride, size, {"auto_pad": mode}), off(op, kernel, stride, size, {"pads": [first] * 2 + [last] * 2})
            assert explicit < 1e-4, (op, kernel, stride, size, mode, explicit)
            if same > 1e-2:
                wrong.add((op, kernel, stride, size, mode))
                print(f"{op} {kernel}x{kernel}, stride {stride}, on {size}x{size}, {mode}: off by {same:.0%}; with pads {first} and {last}: right")
expected = {(3, 2, 8, "SAME_UPPER"), (3, 3, 8, "SAME_UPPER"), (2, 1, 8, "SAME_LOWER"), (4, 1, 8, "SAME_LOWER")}
assert wrong == {(op, *case) for op in ("Conv", "MaxPool", "AveragePool") for case in expected}, wrong
PY
