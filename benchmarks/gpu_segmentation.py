"""Table 8: PSPNet at 713 x 713 on RepVGG and ResNet backbones, in training form and fused.

The paper's speeds are those of the fused nets; it blames the dilated 3x3 convs of its libraries for the distance between a
backbone and its "fast" variant, of which only the last five layers are dilated.
"""

import gc
import time

import torch
from torch import nn

from benchmarks.gpu_measure import Budget, Key, Results, report
from benchmarks.gpu_settings import Settings
from benchmarks.gpu_zoo import FUSED, TRAINING, time_nets
from reparam_compiler import fuse
from reparam_compiler.zoo import randomise_batch_norm

PART = "segmentation"
PAPER = {
    "RepVGG-B1g2 fast": 10.9,
    "ResNet-50": 10.4,
    "RepVGG-B1g2": 8.0,
    "RepVGG-B2 fast": 6.9,
    "ResNet-101": 6.7,
    "RepVGG-B2": 4.5,
}
"""Examples a second on a 1080Ti in fp32, batch 16."""


def measure(settings: Settings, results: Results, ends: float) -> None:
    """Time each backbone's PSPNet in the first and the last mode, as far as the time goes."""
    from reparam_compiler.zoo.pspnet import pspnet

    modes = list(dict.fromkeys((settings.modes[0], settings.modes[-1])))
    wanted = settings.segmentation
    budget = Budget(ends, 2 * len(modes) * len(wanted.backbones), settings.longest)
    for backbone in wanted.backbones:
        if time.perf_counter() > ends - 1:
            results.left_out += [f"{PART}: {backbone}, {mode}, batch {wanted.batch}: no time left" for mode in modes]
            continue
        torch.manual_seed(0)
        training: nn.Module = randomise_batch_norm(pspnet(backbone)).eval()
        fused: nn.Module = fuse(training, verify=False)
        nets: dict[Key, nn.Module] = {(backbone, TRAINING): training, (backbone, FUSED): fused}
        nets = {key: net.to(settings.device) for key, net in nets.items()}
        for mode in modes:
            where = f"{PART}: {backbone}, {mode}, batch {wanted.batch}"
            seconds = budget.take(2)
            if seconds == 0:
                results.left_out.append(f"{where}: no time left")
                continue
            try:
                found = time_nets(PART, nets, mode, wanted.batch, settings, seconds, wanted.image)
            except torch.OutOfMemoryError:
                results.left_out.append(f"{where}: out of memory")
            else:
                results.measurements += found
                report(found)
        del nets, training, fused
        gc.collect()
