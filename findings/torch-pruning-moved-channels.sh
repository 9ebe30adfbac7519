#!/usr/bin/env bash
# Guess:  Torch-Pruning follows a removed channel to where it is read, and refuses what it cannot follow. Channels that are zero can
#         then be removed and the output stays, as it does behind flatten, cat and chunk.
# So:     what moves channels is taken for something that does not: behind flip(1), a channel shuffle, and a flattening of
#         channels-last (permute(0, 2, 3, 1).reshape) it removes the weights that would be right had the channels stayed in place.
#         Nothing is raised, every shape fits, and the layer reads other channels than it was trained on.
# Hurts:  who prunes ShuffleNets, heads ported from TensorFlow that flatten channels-last: fine-tuning hides the loss, which looks
#         like that of pruning.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0 numpy==2.4.6
pip --no-deps torch-pruning==1.6.1
"$folder/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
import torch_pruning
from torch import nn

print("torch-pruning", version("torch-pruning"), "torch", torch.__version__)
torch.set_num_threads(1)


def shuffled(u):
    """The channels of two groups in turn, as ShuffleNet has them."""
    images, channels, height, width = u.shape
    return u.reshape(images, 2, channels // 2, height, width).transpose(1, 2).reshape(u.shape)


class Net(nn.Module):
    """A conv, something that moves its channels or not, and a layer that reads them."""

    def __init__(self, between, reader):
        super().__init__()
        self.conv, self.between, self.reader = nn.Conv2d(3, 8, 3, padding=1), between, reader

    def forward(self, x):
        return self.reader(self.between(torch.relu(self.conv(x))))


cases = {
    "flatten": (lambda u: torch.flatten(u, 1), nn.Linear(8 * 16, 5)),
    "cat with itself": (lambda u: torch.cat([u, u.sin()], 1), nn.Conv2d(16, 5, 1)),
    "product of two chunks": (lambda u: u.chunk(2, 1)[0] * u.chunk(2, 1)[1], nn.Conv2d(4, 5, 1)),
    "mean of the pixels": (lambda u: u.mean((2, 3)), nn.Linear(8, 5)),
    "flip": (lambda u: u.flip(1), nn.Conv2d(8, 5, 1)),
    "channel shuffle": (shuffled, nn.Conv2d(8, 5, 1)),
    "channels-last flattened": (lambda u: u.permute(0, 2, 3, 1).reshape(len(u), -1), nn.Linear(8 * 16, 5)),
}
changed = []
for name, (between, reader) in cases.items():
    torch.manual_seed(0)
    net, x = Net(between, reader).eval(), torch.randn(2, 3, 4, 4)
    graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=x)
    group = graph.get_pruning_group(net.conv, torch_pruning.prune_conv_out_channels, idxs=[1, 5])
    with torch.no_grad():
        net.conv.weight[[1, 5]] = 0
        net.conv.bias[[1, 5]] = 0
        want = net(x)
        group.prune()
        found = net(x)
    assert net.conv.out_channels == 6 and found.shape == want.shape
    off = float((found - want).abs().max() / want.abs().max())
    print(f"{name}: two channels of zeros removed, the output moves by {off:.2g} of its largest")
    changed += [name] if off > 1e-4 else []
assert changed == ["flip", "channel shuffle", "channels-last flattened"], changed
PY
