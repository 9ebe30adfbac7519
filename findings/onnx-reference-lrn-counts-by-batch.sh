#!/usr/bin/env bash
# Guess:  onnx's ReferenceEvaluator runs LRN over every channel, whatever the batch: the operator's text sums over a region of channels.
# So:     it normalizes as many channels as there are images. Batch 2 with 4 channels leaves the squares of the last two at 0, so these
#         channels are only divided by bias ** beta: with bias 1 they come out as they went in. Batch 4 with 4 channels is right, as ONNX
#         Runtime is for every batch; a batch of more images than channels raises IndexError.
# Hurts:  who takes the reference for the truth in a test of a backend or a pass: at batch 1 all channels but the first are wrong. onnx 1.23.2
#         does the same.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.22.0 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

CHANNELS, SIZE = 4, 3
print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)


def by_definition(x):
    """alpha 1, beta 1/2, bias 1: x / sqrt(1 + sum of the squares of SIZE neighbouring channels / SIZE)."""
    square = np.pad(x**2, [(0, 0), (SIZE // 2, SIZE // 2), (0, 0), (0, 0)])
    return x / np.sqrt(1 + sum(square[:, c : c + CHANNELS] for c in range(SIZE)) / SIZE)


def right_channels(batch):
    shape = [batch, CHANNELS, 2, 2]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    node = helper.make_node("LRN", ["x"], ["y"], size=SIZE, alpha=1.0, beta=0.5, bias=1.0)
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    x = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    wanted = by_definition(x)
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert np.allclose(runtime, wanted), "ONNX Runtime is no longer right"
    try:
        reference = ReferenceEvaluator(model).run(None, {"x": x})[0]
    except IndexError as error:
        return f"IndexError: {error}"
    right = [bool(np.allclose(reference[:, c], wanted[:, c])) for c in range(CHANNELS)]
    assert all(ok or np.array_equal(reference[:, c], x[:, c]) for c, ok in enumerate(right)), "a wrong channel is wrong in another way"
    return right


found = {batch: right_channels(batch) for batch in (1, 2, 4, 5)}
for batch, right in found.items():
    print("batch", batch, "channels that are right (reference):", right)
assert found[1] == [True, False, False, False] and found[2] == [True, True, False, False] and found[4] == [True] * 4, found
assert isinstance(found[5], str) and "IndexError" in found[5], found
PY
