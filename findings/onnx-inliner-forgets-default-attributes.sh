#!/usr/bin/env bash
# Guess:  onnx.inliner puts a function's body in the place of its call with the attributes of the call, and where the call has none, with
#         the default that the function states (`attribute_proto`, since IR version 9).
# So:     the default is forgotten: the inner node stays without the attribute, and falls back to its operator's own default. A function
#         with a LeakyRelu of alpha 0.3 by default becomes one of 0.01. The result is valid, nothing is said. What the call itself states
#         is right; ONNX Runtime, and the inlining of onnx_ir and onnxscript, take the default.
# Hurts:  who inlines functions with parameters, such as onnxscript writes, for a tool that knows none: other slopes, epsilons or axes
#         than the model has.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnx-ir==1.1.0 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import onnx
import onnx.inliner
import onnx_ir
import onnxruntime
import onnxscript.optimizer
from onnx import AttributeProto, TensorProto, helper
from onnx_ir.passes.common import InlinePass

print({name: version(name) for name in ("onnx", "onnx-ir", "onnxscript", "onnxruntime")})
x = np.float32([[-1, -2, 3]])
onnx_17, mine = helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)


def model_of(**attributes):
    """A call with `attributes` of a function that is a LeakyRelu, with alpha 0.3 unless the call says otherwise."""
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.append(AttributeProto(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT))
    function = helper.make_function("mine", "Leaky", ["a"], ["b"], [leaky], [onnx_17], [], [helper.make_attribute("alpha", 0.3)])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Leaky", ["x"], ["y"], domain="mine", **attributes)], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[onnx_17, mine], functions=[function], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def by_ir(model):
    read = onnx_ir.from_proto(model)
    InlinePass()(read)
    return onnx_ir.to_proto(read)


def run(model):
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


found = {}
for case, attributes, alpha in (("alpha of the call", {"alpha": 0.7}, 0.7), ("alpha by default", {}, 0.3)):
    model = model_of(**attributes)
    answers = {
        "not inlined, ONNX Runtime": run(model),
        "by onnx.inliner": run(onnx.inliner.inline_local_functions(model)),
        "by onnx_ir": run(by_ir(model)),
        "by onnxscript.optimizer": run(onnxscript.optimizer.optimize(model)),
    }
    for way, answer in answers.items():
        found[case, way] = bool(np.allclose(answer, np.where(x < 0, alpha * x, x)))
        print(f"{case}, {way}: {answer[0].tolist()}, {'right' if found[case, way] else 'wrong'}")
assert [key for key, right in found.items() if not right] == [("alpha by default", "by onnx.inliner")], found
PY
