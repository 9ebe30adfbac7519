#!/usr/bin/env bash
# Guess:  onnx's ReferenceEvaluator runs a Loop that has a trip count and no condition as often as the count says: the operator's text
#         spells that case out, as a plain for loop.
# So:     it runs it not once. What is carried comes out as it went in, with no error. With a condition that is a constant true it runs
#         as often as ONNX Runtime does.
# Hurts:  who checks a converter or an optimizer by it: a loop whose condition was found to be always true and left out, as the text
#         allows, computes something else there; and a model that was wrong and one that was right agree, as both do nothing.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
from importlib.metadata import version

import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

STEPS, X = 3, np.zeros(2, np.float32)
node, value = helper.make_node, helper.make_tensor_value_info


def model(condition):
    """x + 1 + 1 + 1, by a loop with this condition."""
    body = helper.make_graph(
        [node("Add", ["held", "one"], ["next"]), node("Identity", ["going"], ["on"])],
        "body",
        [value("step", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("held", TensorProto.FLOAT, [2])],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [2])],
    )
    arrays = {"steps": np.array(STEPS, np.int64), "one": np.float32(1).reshape(()), "true": np.array(True)}
    graph = helper.make_graph(
        [node("Loop", ["steps", condition, "x"], ["y"], body=body)], "loop", [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])], [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


print("onnx", version("onnx"), "onnxruntime", version("onnxruntime"))
found = {}
for condition in ("true", ""):
    made = model(condition)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found[condition] = [float(run(None, {"x": X})[0][0]) for run in (ReferenceEvaluator(made).run, session.run)]
    print(f"condition {condition or 'left out'}: reference {found[condition][0]}, ONNX Runtime {found[condition][1]}; {STEPS} steps of 1")
assert found["true"] == [STEPS, STEPS], "a loop with a condition is off"
assert found[""][1] == STEPS, "ONNX Runtime is off"
assert found[""][0] == 0, "the reference evaluator runs the loop now"
PY
