#!/usr/bin/env bash
# Guess:  tract computes k - conv(x) and k / conv(x) as ONNX writes them, with k one value per channel: the same nodes behind a
#         Relu are right.
# So:     behind a 3x3 conv, with k of one value per channel (shape (C, 1, 1) or (1, C, 1, 1)), it computes conv(x) + k for the
#         first and infinities for the second. Right are a 1x1 conv, a scalar k, and a k along the width. No warning.
# Hurts:  whoever runs a net there that inverts its features per channel: k - y behind a conv, a mask 1 - y whose one was
#         broadcast to the channels by a folder of constants.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tract==0.23.9 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import tract
from onnx import TensorProto, helper, numpy_helper

print("tract", version("tract"), "onnxruntime", onnxruntime.__version__)
rng = np.random.default_rng(0)
x = rng.normal(size=(1, 4, 6, 6)).astype(np.float32)
weight = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)


def outputs(op, constant, first):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["u"], pads=[1, 1, 1, 1]) if first == "Conv" else helper.make_node("Relu", ["x"], ["u"]),
        helper.make_node(op, ["k", "u"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 6, 6]) for n in "xy"]
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(constant, "k")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors[first != "Conv" :])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = f"{sys.argv[1]}/model.onnx"
    onnx.save(model, path)
    want = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    return want, tract.onnx().load(path).into_model().into_runnable().run([x])[0].to_numpy()


equal = {}
for op in ("Sub", "Div"):
    for first in ("Conv", "Relu"):
        for shape in ((), (6,), (4, 1, 1), (1, 4, 1, 1)):
            constant = np.asarray(rng.normal(size=shape) + 4, np.float32)
            want, found = outputs(op, constant, first)
            if (op, first) != ("Div", "Relu"):  # a Relu's zeros would be divided by
                equal[op, first, shape] = bool(np.allclose(found, want, rtol=1e-3, atol=1e-4))
                print(op, first, shape, "equal" if equal[op, first, shape] else "different")
            if (op, first, shape) == ("Sub", "Conv", (4, 1, 1)):
                assert np.allclose(found, 2 * constant - want, atol=1e-4), "it is the sum of the constant and the conv"
            if (op, first, shape) == ("Div", "Conv", (4, 1, 1)):
                assert np.isinf(found).any() and np.isfinite(want).all()
assert {key for key, same in equal.items() if not same} == {(op, "Conv", s) for op in ("Sub", "Div") for s in ((4, 1, 1), (1, 4, 1, 1))}
PY
