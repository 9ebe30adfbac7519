#!/usr/bin/env bash
# Guess:  Aidge's reader of ONNX pads a pool with auto_pad SAME_UPPER as it pads a Conv: the odd pixel behind, and before for SAME_LOWER.
# So:     for a Conv it does. For MaxPool and AveragePool the two are swapped: UPPER pads before and LOWER behind. The shapes are right,
#         nothing is said, and the picture is shifted by a pixel; LOWER read as UPPER is exactly right. Where the padding is even, and with
#         explicit pads, pools are right.
# Hurts:  who brings nets from TensorFlow or Keras to Aidge to quantize them or to write C code: a pool beside a conv, as in Inception, looks
#         at other pixels than the conv.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check aidge_core==0.10.1 aidge_onnx==0.10.1 aidge_backend_cpu==0.10.1 \
  onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>"$folder/said" <<'PY' || { tail -5 "$folder/said"; exit 1; }
from importlib.metadata import version

import aidge_backend_cpu, aidge_core, aidge_onnx, numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

print(*(f"{name} {version(name)}" for name in ("aidge_core", "aidge_onnx", "onnxruntime")))
aidge_core.Log.set_console_level(aidge_core.Level.Fatal)
rng = np.random.default_rng(0)
weight = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)


def by_both(op, stride, padding, x):
    node = helper.make_node(op, ["x", "w"] if op == "Conv" else ["x"], ["y"], kernel_shape=[3, 3], strides=[stride] * 2, **padding)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x.shape), ("y", (1, 4, 8 // stride, 8 // stride)))]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")] if op == "Conv" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "model.onnx")
    read = aidge_onnx.load_onnx("model.onnx")
    read.set_backend("cpu")
    read.set_datatype(aidge_core.dtype.float32)
    aidge_core.SequentialScheduler(read).forward(data=[aidge_core.Tensor(x)])
    (output,) = read.get_output_nodes()
    return np.array(output.get_operator().get_output(0)), onnxruntime.InferenceSession("model.onnx").run(None, {"x": x})[0]


wrong = []
for op in ("Conv", "MaxPool", "AveragePool"):
    for stride in (1, 2):
        x = rng.normal(size=(1, 4, 8, 8)).astype(np.float32)
        cases = {mode: {"auto_pad": mode} for mode in ("SAME_UPPER", "SAME_LOWER")}
        cases["pads"] = {"pads": [1] * 4 if stride == 1 else [0, 0, 1, 1]}
        results = {name: by_both(op, stride, padding, x) for name, padding in cases.items()}
        for name, (got, want) in results.items():
            assert got.shape == want.shape
            off = float(np.abs(got - want).max())
            print(f"{op} 3x3, stride {stride}, on 8x8, {name}: off by {off:.2f} of {np.abs(want).max():.2f}")
            if off > 1e-4:
                wrong.append((op, stride, name))
        if op == "MaxPool" and stride == 2:
            assert np.allclose(results["SAME_LOWER"][0], results["SAME_UPPER"][1]), "LOWER is not read as UPPER"
assert wrong == [(op, 2, mode) for op in ("MaxPool", "AveragePool") for mode in ("SAME_UPPER", "SAME_LOWER")], wrong
PY
