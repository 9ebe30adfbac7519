#!/usr/bin/env bash
# Guess:  tract computes Celu and GlobalLpPool by their definitions, or refuses them.
# So:     Celu is right for alpha 1 alone: for 0.5 it is off by up to half. GlobalLpPool is wrong for p 1 and p 2. Neither is
#         refused, nothing is said.
# Hurts:  nets with nn.CELU(alpha) or a pooled norm as their head, which load, run and answer.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tract==0.23.9 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import onnx
import tract
from onnx import TensorProto, helper

print("tract", version("tract"))
x = np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype(np.float32)


def found(op, shape, **attributes):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x.shape), ("y", shape))]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], **attributes)], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = f"{sys.argv[1]}/model.onnx"
    onnx.save(model, path)
    return tract.onnx().load(path).into_model().into_runnable().run([x])[0].to_numpy()


def celu(alpha):
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha))


def norm(p):
    return (np.abs(x) ** p).sum((2, 3), keepdims=True) ** (1 / p)


right = {}
for alpha in (1.0, 0.5, 2.0):
    right["Celu", alpha] = bool(np.allclose(found("Celu", x.shape, alpha=alpha), celu(alpha), atol=1e-5))
for p in (1, 2):
    result = found("GlobalLpPool", (1, 4, 1, 1), p=p)
    print("GlobalLpPool", p, "defined", norm(p).ravel().round(3), "found", result.ravel().round(3))
    right["GlobalLpPool", p] = bool(np.allclose(result, norm(p), rtol=1e-4))
print(right)
assert [key for key, is_right in right.items() if is_right] == [("Celu", 1.0)], right
PY
