#!/usr/bin/env bash
# Guess:  auto_pad SAME_UPPER pads so that the output has as many positions as the input (at a stride of 1), whatever the dilations, in
#         ONNX Runtime as in the specification; what a runtime cannot do, it refuses when it loads the file.
# So:     a dilated Conv with SAME padding loads, and its first run raises. A dilated MaxPool or AveragePool runs, and counts its padding as
#         if there were no dilation: 9x9 becomes 7x7, beside a declared output of 9x9, without an error; the values are those of pads of 1.
#         With pads written out all of them run as onnx's own evaluator does.
# Hurts:  who exports a conv with padding="same" and a dilation by torch's older exporter (dynamo=False), which writes auto_pad; who has pools
#         from Keras or by hand: a later layer gets another size. A check that stops at loading, or at inferred shapes, passes both.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
onnxruntime.set_default_logger_severity(4)
x = np.random.default_rng(0).standard_normal((1, 3, 9, 9)).astype(np.float32)
weight = np.random.default_rng(1).standard_normal((3, 3, 3, 3)).astype(np.float32)


def model(op, size=9, **attributes):
    reads, weights = (["x", "w"], [numpy_helper.from_array(weight, "w")]) if op == "Conv" else (["x"], [])
    node = helper.make_node(op, reads, ["y"], kernel_shape=[3, 3], dilations=[2, 2], **attributes)
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, side, side))] for name, side in (("x", 9), ("y", size))]
    graph = helper.make_graph([node], "g", *ends, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(made):
    session = onnxruntime.InferenceSession(made.SerializeToString())
    try:
        return session.run(None, {"x": x})[0]
    except Exception as error:
        return f"{type(error).__name__}: {str(error).split('Status Message:')[-1].strip()}"


found = {}
for op in ("Conv", "MaxPool", "AveragePool"):
    same, pads = model(op, auto_pad="SAME_UPPER"), model(op, pads=[2] * 4)
    by_onnx, padded = ReferenceEvaluator(same).run(None, {"x": x})[0], run(pads)
    found[op] = run(same)
    said = found[op] if isinstance(found[op], str) else f"gives {found[op].shape}"
    print(f"{op}: with pads {padded.shape}, as onnx: {np.allclose(padded, ReferenceEvaluator(pads).run(None, {'x': x})[0], atol=1e-5)};",
          f"with auto_pad onnx gives {by_onnx.shape}, onnxruntime {said}")
    assert padded.shape == by_onnx.shape == x.shape
assert "Dilation not supported" in found["Conv"]
for op in ("MaxPool", "AveragePool"):
    small = model(op, 7, pads=[1] * 4)
    assert found[op].shape == (1, 3, 7, 7)
    assert np.array_equal(found[op], run(small)), op
PY
