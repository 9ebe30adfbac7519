#!/usr/bin/env bash
# Guess:  what pnnx cannot say in ncnn's layers it names ("ignore …", "unsupported …"), and ncnn then refuses to load the net.
# So:     five go through without a word and are wrong: an InstanceNorm with running statistics takes those of the image; div with a
#         rounding mode divides without rounding; remainder is counted from the nearest multiple, not from the one below; a LayerNorm
#         over channels, height and width normalizes each channel by itself; an average pool with ceil_mode and padding is wrong where
#         its last window passes the edge. The plain norm and division, a LayerNorm of two axes and a pool without ceil_mode are right.
# Hurts:  who ships a net to phones by ncnn and checks that it loads and that the shapes fit: compare the values.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 pnnx==20261020 ncnn==1.0.20261020 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import ncnn
import numpy as np
import torch
from torch import nn

print({name: version(name) for name in ("torch", "pnnx", "ncnn")})
torch.set_num_threads(1)


class Behind(nn.Module):
    """A function behind a 1x1 conv, which tells pnnx where the batch is."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 1), function

    def forward(self, x):
        return self.function(self.conv(x))


def by_ncnn(name, model, x):
    """What ncnn gives for image `x`, and what pnnx said that it could not do."""
    torch.jit.trace(model, x).save(f"{name}.pt")
    command = [Path(sys.executable).with_name("pnnx"), f"{name}.pt", f"inputshape=[{','.join(map(str, x.shape))}]", "fp16=0"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    assert net.load_param(f"{name}.ncnn.param") == 0 and net.load_model(f"{name}.ncnn.bin") == 0
    image = x[0].numpy().copy()
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(image).clone())
    failed, result = extractor.extract("out0")
    assert not failed
    return np.array(result), re.findall(r".*(?:ignore|support|fallback).*", said.stdout + said.stderr)


torch.manual_seed(0)
tracked = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
nn.init.uniform_(tracked.running_mean, -1, 1)
nn.init.uniform_(tracked.running_var, 0.5, 2)
cases = {
    "norm_of_the_image": nn.InstanceNorm2d(4, affine=True),
    "norm_by_statistics": tracked,
    "divided": lambda x: torch.div(x, 0.3),
    "divided_and_floored": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "remainder": lambda x: torch.remainder(x, 0.3),
    "layer_norm_of_two": nn.LayerNorm([9, 10]),
    "layer_norm_of_three": nn.LayerNorm([4, 9, 10]),
    "pool": nn.AvgPool2d(3, 2, 1),
    "pool_ceil": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
}
found = {}
for name, function in cases.items():
    model, x = Behind(function).eval(), torch.randn(1, 4, 9, 10)
    with torch.no_grad():
        want = model(x)[0].numpy()
    got, said = by_ncnn(name, model, x)
    off = float(np.abs(got - want).max() / np.abs(want).max()) if got.shape == want.shape else float("inf")
    found[name] = off < 1e-3
    print(f"{name}: off by {off:.2g} of the largest value; pnnx said {said}")
    assert not said, said
wrong = {"norm_by_statistics", "divided_and_floored", "remainder", "layer_norm_of_three", "pool_ceil"}
assert {name for name, right in found.items() if not right} == wrong, found
PY
