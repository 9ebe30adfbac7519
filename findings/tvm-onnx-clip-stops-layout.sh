#!/usr/bin/env bash
# Guess:  an ONNX Clip whose bounds are constants is imported as relax.clip, as Relu is as relax.nn.relu.
# So:     it comes as two calls of kernels that are already written, `maximum` and `minimum`, whose bounds pass through isnan and where.
#         Passes that work on Relax ops see nothing there: ConvertLayout puts two transposes round each Clip, none round a Relu.
# Hurts:  whoever compiles a MobileNet or another net with ReLU6 from ONNX in another layout than NCHW: two transposes of the activation
#         for each of its 35 Clips. Cure: rewrite the pair to relax.clip after the import.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.22.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
from importlib.metadata import version

import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.frontend.onnx import from_onnx

VALUES = {"first": np.ones((8, 8, 3, 3), np.float32), "second": np.ones((8, 8, 3, 3), np.float32), "low": np.float32(0), "high": np.float32(6)}


def imported(activation, *bounds):
    """Two convs with an activation between."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1] * 4),
        helper.make_node(activation, ["a", *bounds], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["y"], pads=[1] * 4),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 16, 16]) for name in "xy")
    weights = [numpy_helper.from_array(np.asarray(VALUES[name]), name) for name in ("first", "second", *bounds)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.checker.check_model(model, full_check=True)
    return from_onnx(model, keep_params_in_input=False)


def ops(module):
    """The ops of the main function, in order, and how many of its transposes are of activations."""
    names, transposes = [], 0
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call):
                names.append(binding.value.op.name.removeprefix("relax."))
                transposes += names[-1] == "permute_dims" and not isinstance(binding.value.args[0], GenericConst)
    return names, transposes


print("apache-tvm", version("apache-tvm"), "onnx", onnx.__version__)
found = {}
for name, module in {"Relu": imported("Relu"), "Clip": imported("Clip", "low", "high")}.items():
    converted = relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})(module)
    found[name] = ops(module)[0], ops(converted)[1]
    print(f"{name}: imported as {', '.join(found[name][0])}; {found[name][1]} transposes of activations in NHWC")
assert found["Relu"] == (["nn.conv2d", "nn.relu", "nn.conv2d"], 2), "the comparison itself is off"
assert "clip" not in found["Clip"][0] and found["Clip"][0].count("call_tir") == 2, "Clip is imported in another way now"
assert found["Clip"][1] == 4, "Clip does not stop the layout any more"
print("as described: two transposes more, for a Clip of constant bounds")
PY
