#!/usr/bin/env bash
# Guess:  ONNX Runtime turns DequantizeLinear, Conv or MatMul or Gemm, QuantizeLinear into one integer op only where that op can say what the
#         model says. One scale for each output channel it can; where the DequantizeLinear's axis is the one that is summed over, it leaves
#         the floats.
# So:     the axis of the weight's scales is told by their number, if at all. With as many inputs as outputs, a Conv (axis 1)
#         and a Gemm (axis 0, or 1 with transB) are fused all the same, and so is a MatMul with a float result: each output gets the scale
#         of an input, with no word. Where the two numbers differ, Gemm is left and right, and Conv and MatMul raise when they run. A MatMul
#         that is quantized again is right. Without optimizations all of them are.
# Hurts:  who scales weights by input channel (equalization, outlier channels) and writes QDQ models: square layers, the ones that ResNets
#         and transformers are made of, come out wrong, as if the quantizer were.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - 2>"$folder/said" <<'PY' || { tail -5 "$folder/said"; exit 1; }
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
rng = np.random.default_rng(0)
levels = onnxruntime.GraphOptimizationLevel
kinds = {
    "Conv": ("Conv", {}, True, 1, lambda n: (n, 4, 3, 3)),
    "MatMul": ("MatMul", {}, False, 0, lambda n: (4, n)),
    "MatMul, quantized again": ("MatMul", {}, True, 0, lambda n: (4, n)),
    "Gemm": ("Gemm", {}, True, 0, lambda n: (4, n)),
    "Gemm, transB": ("Gemm", {"transB": 1}, True, 1, lambda n: (n, 4)),
}


def qdq(source, target, scale, zero):
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [source + "_q"]),
        helper.make_node("DequantizeLinear", [source + "_q", scale, zero], [target]),
    ]


def model_of(op, attributes, again, axis, shape):
    inits = {"x_scale": np.float32(0.05), "x_zero": np.uint8(128), "y_scale": np.float32(0.1), "y_zero": np.uint8(128)}
    inits["w"] = rng.integers(-100, 100, shape).astype(np.int8)
    inits["w_scale"] = np.geomspace(0.001, 0.05, shape[axis]).astype(np.float32)
    inits["w_zero"] = np.zeros(shape[axis], np.int8)
    nodes = qdq("x", "xd", "x_scale", "x_zero")
    nodes += [helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=axis)]
    nodes += [helper.make_node(op, ["xd", "wd"], ["u" if again else "y"], **attributes)]
    nodes += qdq("u", "y", "y_scale", "y_zero") if again else []
    xs = (1, 4, 6, 6) if op == "Conv" else (3, 4)
    ys = (1, shape[0], 4, 4) if op == "Conv" else (3, shape[0] if attributes else shape[1])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", xs), ("y", ys))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in inits.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model, rng.normal(size=xs).astype(np.float32) * 3


def run(model, x, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


found = {}
for name, (op, attributes, again, axis, shape) in kinds.items():
    for outputs in (4, 5):
        model, x = model_of(op, attributes, again, axis, shape(outputs))
        want = run(model, x, levels.ORT_DISABLE_ALL)
        try:
            off = float(np.abs(run(model, x, levels.ORT_ENABLE_ALL) - want).max())
        except Exception as error:
            found[name, outputs] = "raises"
            print(f"{name}, 4 inputs, {outputs} outputs: raises {type(error).__name__}")
        else:
            found[name, outputs] = "right" if off < 0.11 else "wrong"
            print(f"{name}, 4 inputs, {outputs} outputs: off by {off:.2f} of {np.abs(want).max():.2f}: {found[name, outputs]}")
for name in kinds:
    square, other = ("right", "right") if "again" in name else ("wrong", "right" if "Gemm" in name else "raises")
    assert (found[name, 4], found[name, 5]) == (square, other), (name, found)
PY
