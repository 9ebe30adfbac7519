#!/usr/bin/env bash
# Guess:  tinygrad's OnnxRunner pads a Conv or a pool with auto_pad SAME_UPPER as ONNX says: never by less than nothing, and by the
#         length of the dilated kernel.
# So:     where the stride is larger than the kernel the padding comes out negative, and it crops: a 1x1 Conv of stride 2 on an even size
#         reads the odd pixels, not the even ones. The output has the right shape and other numbers. Dilations are left out of the
#         padding, so that 8x8 becomes 6x6. Explicit pads are right, and SAME_UPPER is where neither is the case.
# Hurts:  ResNets converted from TensorFlow or Keras, whose shortcuts are 1x1 convs of stride 2 with SAME padding: every shortcut is
#         shifted by a pixel, and accuracy falls as if the weights were worse.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tinygrad==0.14.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
DEV=PYTHON CACHEDB="$folder/cache.db" "$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tinygrad import Tensor
from tinygrad.nn.onnx import OnnxRunner

print("tinygrad", version("tinygrad"), "onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
path = f"{sys.argv[1]}/model.onnx"
rng = np.random.default_rng(0)
x = rng.normal(size=(1, 2, 8, 8)).astype(np.float32)
found = {}
for case, kernel, attributes in (
    ("3x3", 3, {"auto_pad": "SAME_UPPER"}),
    ("3x3, stride 2", 3, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("1x1, stride 2, pads of 0", 1, {"pads": [0, 0, 0, 0], "strides": [2, 2]}),
    ("1x1, stride 2", 1, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("3x3, dilation 2", 3, {"auto_pad": "SAME_UPPER", "dilations": [2, 2]}),
):
    weight = rng.normal(size=(3, 2, kernel, kernel)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", x.shape), ("y", [None] * 4))]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    want = ReferenceEvaluator(model).run(None, {"x": x})[0]
    if "dilations" not in attributes:
        assert np.allclose(want, onnxruntime.InferenceSession(path).run(None, {"x": x})[0], atol=1e-4)
    got = OnnxRunner(path)({"x": Tensor(x)})["y"].numpy()
    found[case] = got.shape == want.shape and bool(np.allclose(got, want, atol=1e-4))
    if case == "1x1, stride 2":
        odd = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], x[:, :, 1::2, 1::2])
        assert np.allclose(got, odd, atol=1e-4)
    print(f"{case}: {want.shape[2:]} by the definition, {got.shape[2:]} by tinygrad:", "right" if found[case] else "wrong")
assert [case for case, right in found.items() if not right] == ["1x1, stride 2", "3x3, dilation 2"], found
PY
