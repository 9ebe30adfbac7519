#!/usr/bin/env bash
# Guess:  torch's fusers fold a BatchNorm1d into the Linear before it where both mean the same axis, or ask. Behind a Linear, a norm of
#         a (batch, features) tensor does; of (batch, tokens, features) the Linear makes the last axis and the norm reads the second.
# So:     where tokens and features are equally many, fx.experimental.optimization.fuse, ao's fuse_fx and fuse_modules, and
#         nn.utils.fusion.fuse_linear_bn_eval all fold it along the features: another model, with no word. fuse_fx and fuse need not be told
#         which two to fuse. Two axes are right in all.
# Hurts:  who fuses or quantizes token mixers, PointNets or time-series nets with a square of tokens and features: it looks like an error
#         of rounding.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2>"$folder/said" <<'PY' || { tail -5 "$folder/said"; exit 1; }
import copy

import torch
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_linear_bn_eval

print("torch", torch.__version__)
torch.set_num_threads(1)
fusers = {
    "fx.experimental.optimization.fuse": fuse,
    "ao.quantization.quantize_fx.fuse_fx": fuse_fx,
    "ao.quantization.fuse_modules": lambda model: fuse_modules(model, ["0", "1"]),
    "nn.utils.fusion.fuse_linear_bn_eval": lambda model: fuse_linear_bn_eval(*model),
}
found = {}
for case, shape, tokens in (("(batch, features)", (3, 6), 5), ("as many tokens as features", (3, 5, 6), 5), ("more tokens", (3, 7, 6), 7)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(tokens)).eval()
    norm = model[1]
    for tensor, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight, 0.5, 2), (norm.bias, -1, 1)):
        nn.init.uniform_(tensor, low, high)
    x = torch.randn(shape)
    for name, fuser in fusers.items():
        with torch.no_grad():
            want = model(x)
            try:
                got = fuser(copy.deepcopy(model))(x)
                off = float((got - want).abs().max() / want.abs().max())
                found[case, name] = "right" if off < 1e-5 else "wrong"
                said = f"off by {off:.2g} of the largest output"
            except Exception as error:
                found[case, name] = "refused"
                said = f"{type(error).__name__}: {str(error)[:60]}"
        print(f"{case}, {name}: {found[case, name]}, {said}")
for name in fusers:
    assert found["(batch, features)", name] == "right", found
    assert found["as many tokens as features", name] == "wrong", found
    assert found["more tokens", name] == "refused", found
PY
