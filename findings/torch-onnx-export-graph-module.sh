#!/usr/bin/env bash
# Guess:  torch.onnx.export(..., dynamo=False) takes an fx.GraphModule as it takes any nn.Module: its forward() is plain Python. So it
#         does, until the call has `dynamic_axes`.
# So:     with `dynamic_axes`, and without names for the inputs and the outputs both, it asks every model that has an attribute `graph`
#         for those names, as a script has them. A GraphModule has fx's graph there: "'Graph' object has no attribute". One plain
#         module round it, and it is exported.
# Hurts:  whoever exports what fx gave (fused, pruned or quantized models) with an open batch, for toolchains that ask for that exporter.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import io

import onnx
import torch
from torch import fx, nn

print("torch", torch.__version__, "onnx", onnx.__version__)
x = torch.randn(1, 3, 8, 8)
plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
traced = fx.symbolic_trace(plain)


def exported(model, **axes):
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"], **axes)
    return [node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node]


axes = {"dynamic_axes": {"x": {0: "n"}}}
print("module, dynamic_axes:                 ", exported(plain, **axes))
print("GraphModule, fixed sizes:             ", exported(traced))
try:
    raise SystemExit(f"a GraphModule is exported now: {exported(traced, **axes)}")
except AttributeError as error:
    print("GraphModule, dynamic_axes:            ", type(error).__name__, error)
    assert "'Graph' object has no attribute" in str(error)
print("Sequential(GraphModule), dynamic_axes:", exported(nn.Sequential(traced), **axes))
assert exported(nn.Sequential(traced), **axes) == exported(plain, **axes) == exported(traced)
print("as described: a GraphModule is taken for a script")
PY
