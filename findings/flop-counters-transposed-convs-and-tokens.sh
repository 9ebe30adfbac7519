#!/usr/bin/env bash
# Guess:  tools that count the multiplications of a net agree on a transposed conv and on a linear layer over tokens: each weight is used
#         once for every input pixel of the first, and once for every token of the second.
# So:     thop and torchinfo count the transposed conv by its output pixels: four times too many at a stride of 2, nine at 3. torchinfo
#         counts a Linear once for each item of the batch, whatever lies between: 197 tokens cost as one. Convs of all kinds are right
#         in each (torchinfo and ptflops add the biases), and fvcore, ptflops and torch's own FlopCounterMode have both right.
# Hurts:  who compares U-Nets, GANs or detectors' decoders by their MACs, or a ViT or ConvNeXt with a ResNet, or prunes to a budget: a
#         decoder looks four times as dear as it is, and a transformer's MLP almost free.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 thop==0.1.1.post2209072238 torchinfo==1.8.0 ptflops==0.7.5 \
  fvcore==0.1.5.post20221221 numpy==2.4.6 setuptools==84.2.1
"$folder/venv/bin/python" -W ignore - 2>"$folder/said" <<'PY' || { tail -5 "$folder/said"; exit 1; }
import contextlib
import io
import logging
from importlib.metadata import version

import thop
import torch
import torchinfo
from fvcore.nn import FlopCountAnalysis
from ptflops import get_model_complexity_info
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

print({name: version(name) for name in ("torch", "thop", "torchinfo", "ptflops", "fvcore")})
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)


def by_torch(model, x):
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


counters = {
    "thop": lambda model, x: int(thop.profile(model, (x,), verbose=False)[0]),
    "torchinfo": lambda model, x: torchinfo.summary(model, input_data=x, verbose=0).total_mult_adds,
    "ptflops": lambda model, x: get_model_complexity_info(
        model, tuple(x.shape[1:]), as_strings=False, print_per_layer_stat=False, backend="pytorch"
    )[0],
    "fvcore": lambda model, x: FlopCountAnalysis(model, x).total(),
    "torch": by_torch,
}
image, tokens = (1, 4, 8, 8), (1, 197, 32)
cases = {
    "conv, grouped": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False), image, 8 * 2 * 9 * 64),
    "transposed, stride 2": (lambda: nn.ConvTranspose2d(4, 8, 3, 2, 1, 1, bias=False), image, 4 * 8 * 9 * 64),
    "transposed, stride 3": (lambda: nn.ConvTranspose2d(4, 8, 3, 3, bias=False), image, 4 * 8 * 9 * 64),
    "linear, one vector": (lambda: nn.Linear(32, 16, bias=False), (1, 32), 32 * 16),
    "linear, 197 tokens": (lambda: nn.Linear(32, 16, bias=False), tokens, 197 * 32 * 16),
}
wrong = {}
for case, (make, shape, want) in cases.items():
    for tool, count in counters.items():
        with contextlib.redirect_stdout(io.StringIO()):
            got = count(nn.Sequential(make()).eval(), torch.randn(shape))
        if got != want:
            wrong[case, tool] = got / want
        print(f"{case}: {tool} counts {got} of {want}")
assert wrong == {
    ("transposed, stride 2", "thop"): 4,
    ("transposed, stride 2", "torchinfo"): 4,
    ("transposed, stride 3", "thop"): 9,
    ("transposed, stride 3", "torchinfo"): 9,
    ("linear, 197 tokens", "torchinfo"): 1 / 197,
}, wrong
PY
