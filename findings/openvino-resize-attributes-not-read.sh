#!/usr/bin/env bash
# Guess:  OpenVINO's reader of ONNX computes what Resize's attributes say, or refuses what it does not have, as it does
#         half_pixel_symmetric.
# So:     antialias, exclude_outside and keep_aspect_ratio_policy are not read, nor refused: antialias=1 gives the numbers of
#         antialias=0, exclude_outside=1 those of 0, and not_larger stretches to the size given (another output shape).
# Hurts:  preprocessing exported with antialias (torchvision's resize, timm's), and pictures letter-boxed inside the graph.
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
from onnx import TensorProto, helper, numpy_helper

print("openvino", openvino.__version__, "onnxruntime", onnxruntime.__version__)
x = np.random.default_rng(0).normal(size=(1, 2, 10, 8)).astype(np.float32)


def both(height, width, **attributes):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 2, 10, 8]), ("y", [1, 2, height, width]))]
    node = helper.make_node("Resize", ["x", "", "", "s"], ["y"], axes=[2, 3], **attributes)
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(np.array([5, 5]), "s")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = f"{sys.argv[1]}/model.onnx"
    onnx.save(model, path)
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    return (
        onnxruntime.InferenceSession(path).run(None, {"x": x})[0],
        openvino.compile_model(openvino.convert_model(path), "CPU", config)({"x": x})[0],
    )


for mode, plain, asked in (
    ("linear", {}, {"antialias": 1}),
    ("cubic", {}, {"exclude_outside": 1}),
):
    expected, base = both(5, 5, mode=mode, **plain)
    assert np.allclose(expected, base, atol=1e-5), "without the attribute they agree"
    expected, found = both(5, 5, mode=mode, **asked)
    away = abs(expected - found).max().round(3)
    print(mode, asked, "difference to ONNX Runtime", away, "to the same without it", abs(base - found).max())
    assert abs(expected - found).max() > 0.01 and np.array_equal(base, found)
expected, found = both(5, 4, mode="linear", keep_aspect_ratio_policy="not_larger")
print("not_larger than 5 x 5: ONNX Runtime", expected.shape, "OpenVINO", found.shape)
assert expected.shape == (1, 2, 5, 4) and found.shape == (1, 2, 5, 5)
PY
