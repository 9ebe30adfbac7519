"""Table 4 and 5: each RepVGG in training form and fused, beside the ResNet that the paper pairs it with, folded by Eq. 3.

    ratio = examples a second of a fused RepVGG / those of its ResNet, both out of the same rounds

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 4.1 and Tables 4 and 5.
"""

import copy
import gc
import time

import torch
from torch import nn

from benchmarks.gpu_measure import (
    MODES,
    Budget,
    Call,
    Key,
    Measurement,
    Results,
    peak_megabytes,
    precision,
    relative_error,
    report,
    time_calls,
)
from benchmarks.gpu_settings import Group, Settings
from reparam_compiler import fuse
from reparam_compiler.zoo import REPVGG, RESNET, randomise_batch_norm

PART = "zoo"
TRAINING, FUSED, FOLDED = "training form", "fused", "folded"


def measure(settings: Settings, results: Results, ends: float) -> None:
    """Time every group in every configuration, as far as the time goes."""
    configurations = sum(group.size for group in settings.groups) * len(settings.modes) * len(settings.batches)
    budget = Budget(ends, configurations, settings.longest)
    for group in settings.groups:
        plan = [(mode, batch) for batch in settings.batches for mode in settings.modes]
        if time.perf_counter() > budget.ends - 1:
            results.left_out += [f"{PART}: {group.repvgg}, {mode}, batch {batch}: no time left" for mode, batch in plan]
            continue
        nets = build(group, settings, results)
        for mode, batch in plan:
            seconds = budget.take(group.size)
            name = f"{PART}: {group.repvgg}, {mode}, batch {batch}"
            if seconds == 0:
                results.left_out.append(f"{name}: no time left")
                continue
            try:
                found = time_nets(PART, nets, mode, batch, settings, seconds)
            except torch.OutOfMemoryError:
                results.left_out.append(f"{name}: out of memory")
            else:
                results.measurements += found
                report(found)
        del nets
        gc.collect()


def build(group: Group, settings: Settings, results: Results) -> dict[Key, nn.Module]:
    """The nets of a group by name and form, in float32, on the device; notes how far fusing moved the output."""
    torch.manual_seed(0)
    training: nn.Module = randomise_batch_norm(REPVGG[group.repvgg]()).eval()
    nets: dict[Key, nn.Module] = {
        (group.repvgg, TRAINING): training,
        (group.repvgg, FUSED): fuse(training, verify=False),
    }
    if group.resnet is not None:
        nets[group.resnet, FOLDED] = fuse(randomise_batch_norm(RESNET[group.resnet]()).eval(), verify=False)
    nets = {key: net.to(settings.device) for key, net in nets.items()}
    x = torch.randn(2, 3, settings.image, settings.image, device=settings.device)
    with torch.inference_mode(), precision(MODES["fp32"]):
        error = relative_error(nets[group.repvgg, FUSED](x), nets[group.repvgg, TRAINING](x))
    results.errors[f"{group.repvgg} fused"] = error
    return nets


def time_nets(
    part: str, nets: dict[Key, nn.Module], mode: str, batch: int, settings: Settings, seconds: float, image: int = 0
) -> list[Measurement]:
    """Time the nets in turns in eager mode for about `seconds` in all; `image` where it is not the run's own."""
    started, chosen, side = time.perf_counter(), MODES[mode], image or settings.image
    x = torch.randn(batch, 3, side, side, device=settings.device, dtype=chosen.dtype)
    x = x.contiguous(memory_format=chosen.memory_format)
    calls: dict[Key, Call] = {}
    with torch.inference_mode(), precision(chosen):
        for key, net in nets.items():
            cast = copy.deepcopy(net).to(dtype=chosen.dtype, memory_format=chosen.memory_format)
            cast(x)  # cuDNN chooses its algorithms: what it tries them with is no part of the peak
            calls[key] = Call(lambda cast=cast: cast(x), peak_megabytes(cast, x))  # type: ignore[misc]
        return time_calls(part, calls, mode, batch, seconds - (time.perf_counter() - started), settings.device)
