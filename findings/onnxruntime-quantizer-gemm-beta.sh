#!/usr/bin/env bash
# Guess:  onnxruntime's quantize_static keeps what a Gemm computes, alpha * A B + beta * C, or leaves the Gemm in float where it
#         cannot, as quantize_dynamic leaves it.
# So:     it sets beta to 1 and leaves the factor out: of a beta of 2, QDQ adds the bias once, and QOperator half of it, since there
#         the scale of the bias is multiplied by beta and nothing else is (of 4, a quarter). QOperator multiplies the bias by alpha,
#         too. With both 1 all is right, and quantize_dynamic is.
# Hurts:  who quantizes nets whose Gemm carries another alpha or beta (torch.addmm exports both as they are): no word is said.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

logging.disable(logging.WARNING)  # it advises to preprocess
print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
rng = np.random.default_rng(0)
x = rng.normal(size=(3, 8)).astype(np.float32)
weight, bias = rng.normal(size=(8, 4)).astype(np.float32), (10 + rng.normal(size=4)).astype(np.float32)


class Calibration(quantization.CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"x": x}])

    def get_next(self):
        return next(self.batches, None)


def run(path):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options).run(None, {"x": x})[0]


for alpha, beta in ((1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (0.5, 1.0)):
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="gemm", alpha=alpha, beta=beta)
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, (3, size))] for name, size in (("x", 8), ("y", 4))]
    graph = helper.make_graph([node], "g", *ends, [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "c")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "float.onnx")
    want = run("float.onnx")
    assert np.allclose(want, alpha * x @ weight + beta * bias, atol=1e-4)
    quantization.quantize_dynamic("float.onnx", "int8.onnx")
    assert np.allclose(run("int8.onnx"), want, atol=0.3), "quantize_dynamic is right"
    for form, factor in (("QDQ", 1), ("QOperator", alpha / beta)):
        quantization.quantize_static("float.onnx", "int8.onnx", Calibration(), quant_format=quantization.QuantFormat[form])
        added = (run("int8.onnx") - alpha * x @ weight).mean() / bias.mean()
        print(f"alpha {alpha} beta {beta}: {form} adds {added:.2f} times the bias, {factor:.2f} as described, {beta:.2f} are right")
        assert abs(added - factor) < 0.05, (alpha, beta, form, added)
PY
