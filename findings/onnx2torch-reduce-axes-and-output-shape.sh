#!/usr/bin/env bash
# Guess:  onnx2torch gives what the node says, or raises NotImplementedError, as it does for auto_pad SAME and uneven pads.
# So:     ReduceMax, ReduceMin and ReduceProd over two axes counted from the end, with keepdims=0, reduce others: [-2, -1], the
#         height and the width, become the height and the channels. ReduceMean and the rest are right, and so are positive axes. A
#         ConvTranspose with output_shape gets the size that it would have without, and a Pad below opset 11 fills with 0, not with
#         its value.
# Hurts:  who brings a global maximum over [-2, -1] back from ONNX, or whose transposed convs have an output_shape: all
#         convert and run without an error.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
pip --no-deps onnx2torch==1.5.15
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys
from importlib.metadata import version
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

sys.modules.update({name: MagicMock() for name in ("torchvision", "torchvision.ops")})  # called for NonMaxSuppression and RoiAlign
import onnx2torch

print({name: version(name) for name in ("onnx2torch", "torch", "onnxruntime")})
rng = np.random.default_rng(0)
x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
weight = rng.normal(size=(3, 6, 3, 3)).astype(np.float32)


def outputs(op, opset=13, **attributes):
    reads, weights = (["x", "w"], [numpy_helper.from_array(weight, "w")]) if op == "ConvTranspose" else (["x"], [])
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in (("x", x.shape), ("y", None))]
    graph = helper.make_graph([helper.make_node(op, reads, ["y"], **attributes)], "g", *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    want = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    return want, onnx2torch.convert(model)(torch.from_numpy(x)).detach().numpy()


wrong = set()
for op in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean", "ReduceSum", "ReduceL2"):
    for axes in ([-2, -1], [2, 3]):
        for keepdims in (0, 1):
            want, found = outputs(op, 11, axes=axes, keepdims=keepdims)
            if want.shape != found.shape or not np.allclose(want, found, atol=1e-4):
                wrong.add((op, tuple(axes), keepdims))
                print(op, axes, "keepdims", keepdims, "is", want.shape, "and becomes", found.shape)
                reduced = {"ReduceMax": np.max, "ReduceMin": np.min, "ReduceProd": np.prod}[op](x, axis=(1, 2))
                assert np.allclose(found, reduced, atol=1e-4), "the height and the channels"
assert wrong == {(op, (-2, -1), 0) for op in ("ReduceMax", "ReduceMin", "ReduceProd")}, wrong

want, found = outputs("ConvTranspose", strides=[2, 2], output_shape=[8, 10])
print("ConvTranspose with output_shape [8, 10] becomes", found.shape)
assert want.shape == (2, 6, 8, 10) and found.shape == (2, 6, 9, 11)

want, found = outputs("Pad", 10, pads=[0, 0, 1, 0, 0, 0, 0, 0], value=7.0)
print("Pad of opset 10 with the value 7 becomes", found[0, 0, 0])
assert (want[:, :, 0] == 7).all() and (found[:, :, 0] == 0).all()
PY
