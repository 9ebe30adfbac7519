#!/usr/bin/env bash
# Guess:  onnx's ReferenceEvaluator runs RNN, GRU and LSTM by their definition, or raises for an input or an attribute that it has not.
# So:     `sequence_lens` and `clip` are taken and not read: every sequence is as long as the longest, so that the outputs behind a
#         shorter one's end are not zero and its last state is another, and the gates are not bounded. Nothing is said.
# Hurts:  who judges a converter, an optimizer or a runtime of recurrent nets by it, or folds constants with it: batches of unequal length
#         (speech, handwriting) come out wrong from the evaluator, and right results look wrong.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
from importlib.metadata import version

import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
random = np.random.default_rng(0)
X = random.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)


def model(op, lengths=None, **attributes):
    rows = GATES[op] * HIDDEN
    arrays = {"w": 2 * random.standard_normal((1, rows, INPUTS)), "r": random.standard_normal((1, rows, HIDDEN))}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    if lengths is not None:
        arrays["lengths"] = np.array(lengths, np.int32)
    inputs = ["x", "w", "r"] + ([] if lengths is None else ["", "lengths"])
    node = helper.make_node(op, inputs, ["y"], hidden_size=HIDDEN, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, BATCH, HIDDEN])
    graph = helper.make_graph([node], op, [x], [y], [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


print("onnx", version("onnx"), "onnxruntime", version("onnxruntime"))
for op in GATES:
    apart = {}
    for name, given in {"plain": {}, "lengths 2 and 5": {"lengths": [2, STEPS]}, "clip 0.1": {"clip": 0.1}}.items():
        made = model(op, **given)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,), (expected,) = ReferenceEvaluator(made).run(None, {"x": X}), session.run(None, {"x": X})
        apart[name] = float(np.abs(found - expected).max())
        if "lengths" in given:
            print(f"{op}: behind the end of the shorter one ONNX Runtime has at most {np.abs(expected[2:, :, 0]).max():.1g}, ", end="")
            print(f"the reference up to {np.abs(found[2:, :, 0]).max():.2g}")
    print(f"{op}: reference and ONNX Runtime are apart by", ", ".join(f"{far:.2g} ({name})" for name, far in apart.items()))
    assert apart["plain"] < 1e-4, "the plain layer is off as well"
    assert min(apart["lengths 2 and 5"], apart["clip 0.1"]) > 0.05, "lengths or clip are read now"
PY
