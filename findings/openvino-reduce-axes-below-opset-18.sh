#!/usr/bin/env bash
# Guess:  OpenVINO reads the axes of ONNX's Reduce ops where their opset keeps them: an attribute below opset 18 (13 for
#         ReduceSum), an input since.
# So:     for ReduceL1, ReduceLogSum and ReduceLogSumExp below opset 18 the attribute is not read: they reduce over every axis,
#         and the output has another shape. ReduceMax, Mean, Min, Prod, L2 and SumSquare are right, and so are all at opset 18.
# Hurts:  torch's logsumexp and L1 norms exported at opset 13 to 17, the exporters' choice for years: another shape, or where it
#         broadcasts, other numbers.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

print("openvino", openvino.__version__, "onnx", onnx.__version__)
x = np.random.default_rng(0).uniform(1, 2, size=(2, 4, 6)).astype(np.float32)


def shape_of(op, opset):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [2, 4, 6]), ("y", [2, 1, 6]))]
    if opset < 18:
        node, tensors = helper.make_node(op, ["x"], ["y"], axes=[1]), []
    else:
        node, tensors = helper.make_node(op, ["x", "a"], ["y"]), [numpy_helper.from_array(np.array([1]), "a")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = f"{sys.argv[1]}/model.onnx"
    onnx.save(model, path)
    return openvino.compile_model(openvino.convert_model(path), "CPU")({"x": x})[0].shape


wrong = set()
for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"):
    for opset in (13, 17, 18):
        shape = shape_of(f"Reduce{name}", opset)
        print(f"Reduce{name}", "opset", opset, "over axis 1 of (2, 4, 6):", shape)
        if shape != (2, 1, 6):
            assert shape == (1, 1, 1), shape
            wrong.add((name, opset))
assert wrong == {(name, opset) for name in ("L1", "LogSum", "LogSumExp") for opset in (13, 17)}, wrong
PY
