#!/usr/bin/env bash
# Guess:  onnx's ReferenceEvaluator runs a BatchNormalization of opset 9 to 13 with one output as those opsets define it: one output is
#         test mode, and the stored mean and variance normalize.
# So:     it takes the statistics of the batch and averages them with the stored ones, by momentum, as if it were trained. With a momentum
#         of 0.9 a tenth of the result is the batch's own. From opset 14 on, where the mode is an attribute, it is right; below opset 9 it
#         raises.
# Hurts:  who takes it for the judge of a model of those opsets, which most exporters of 2019 to 2021 wrote: a right fusing, converting or
#         running of every norm looks wrong, by more than rounding and less than nonsense.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
from importlib.metadata import version

import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

X = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
STORED = {"scale": np.ones(3), "shift": np.zeros(3), "mean": np.full(3, 5.0), "variance": np.full(3, 4.0)}
EXPECTED = (X - 5) / np.sqrt(4 + 1e-5)


def model(opset):
    node = helper.make_node("BatchNormalization", ["x", *STORED], ["y"], momentum=0.9)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, X.shape) for name in "xy")
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in STORED.items()]
    graph = helper.make_graph([node], "norm", [x], [y], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def mixed():
    """The norm by nine tenths of the stored statistics and a tenth of the batch's."""
    mean, variance = (0.9 * stored + 0.1 * of(X, axis=(0, 2, 3)) for stored, of in ((5, np.mean), (4, np.var)))
    return (X - mean.reshape(3, 1, 1)) / np.sqrt(variance.reshape(3, 1, 1) + 1e-5)


def off(found, expected):
    return float(np.abs(found - expected).max())


print("onnx", version("onnx"), "onnxruntime", version("onnxruntime"))
for opset in (9, 13, 14, 17):
    made = model(opset)
    reference = ReferenceEvaluator(made).run(None, {"x": X})[0]
    runtime = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]
    print(
        f"opset {opset}: off the stored statistics by {off(reference, EXPECTED):.2g} (reference), {off(runtime, EXPECTED):.2g} (ONNX Runtime); "
        f"the reference is off the mixed ones by {off(reference, mixed()):.2g}"
    )
    assert off(runtime, EXPECTED) < 1e-5, "ONNX Runtime is off"
    assert off(reference, mixed() if opset < 14 else EXPECTED) < 1e-5, "the reference evaluator normalizes otherwise now"
PY
