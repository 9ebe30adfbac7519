#!/usr/bin/env bash
# Guess:  an export that fails leaves nothing behind. The example inputs are only read.
# So:     `Dim.AUTO` is written onto the example tensors themselves, and taken off again where the export succeeds. Where it fails the
#         marks stay: the next export of the same tensor, of any model, asks for nothing, is to have fixed sizes, and has open ones.
# Hurts:  whoever tries open sizes first and fixed ones if that fails, with one batch: the second program has symbols where tools that
#         come after it want numbers; and tests that share an input, whose outcome then depends on what ran before.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from torch import nn
from torch.export import Dim, export

print("torch", torch.__version__)
model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 9)


def sizes(program):
    (node,) = [node for node in program.graph.nodes if node.op == "placeholder" and node.name == "input"]
    return ["a number" if isinstance(size, int) else "open" for size in node.meta["val"].shape]


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


auto = {"dynamic_shapes": ({0: Dim.AUTO, 2: Dim.AUTO},)}
print("at first:                   ", fixed := sizes(export(model, (x,))))
print("with Dim.AUTO:              ", sizes(export(model, (x,), **auto)))
print("after one that succeeded:   ", succeeded := sizes(export(model, (x,))))
try:
    export(Branches(), (x,), **auto)
    raise SystemExit("a branch on data is exported now")
except Exception as error:
    print("another model fails:        ", type(error).__name__)
print("after one that failed:      ", failed := sizes(export(model, (x,))))
print("the same, of a detached one:", detached := sizes(export(model, (x.detach(),))))
assert fixed == succeeded == detached == ["a number"] * 4
assert failed == ["open", "a number", "open", "a number"], "the marks are taken off now"
print("as described: the example input carries the marks of the export that failed")
PY
