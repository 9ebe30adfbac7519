"""How fast this machine is: a second of measurement gives the cost model that decides which fusions pay here.

    MULs per second     of a 1x1 and a 3x3 conv of 64 channels, counted as `cost.work` counts them (a 3x3 takes F(2x2, 3x3))
    bytes per second    of an addition whose operands are larger than any cache
    launch seconds      of a conv and an addition of one element: what is left of an op when there is nothing to compute

All are medians, in torch on the CPU with its current number of threads. The four are timed in turn, round after round:
decisions depend on their ratios, and another process that slows a few rounds slows them alike.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F

from reparam_compiler.cost.model import CostModel, work
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param

FEWEST, MOST, SECONDS = 3, 15, 0.5
"""Rounds: no new one begins after so many seconds."""
_CHANNELS, _SIZE = 64, 28
_LARGE = 2**22
"""Elements of an operand of the addition: 16 MiB."""
_REPEATS = 50
"""How often a tiny op runs in one round: one alone takes less than a clock can tell."""
_SHORTEST = 1e-9
"""Seconds; no clock tells less, and nothing may take none."""


def measure_costs() -> CostModel:
    """The cost model of this machine, measured in less than a second: `fuse(model, cost_model=measure_costs())`.

    >>> measure_costs().muls_per_second > 1e6
    True

    Returns:
        Multiplications and bytes per second, and seconds of a launch, on torch's current number of threads.
    """
    pointwise, pointwise_muls = _conv(1)
    wide, wide_muls = _conv(3)
    a, b, total = torch.ones(_LARGE), torch.ones(_LARGE), torch.empty(_LARGE)
    with torch.inference_mode():
        seconds = _medians(pointwise, wide, lambda: torch.add(a, b, out=total), _tiny_ops)
    return CostModel(
        muls_per_second=(pointwise_muls + wide_muls) / (seconds[0] + seconds[1]),
        bytes_per_second=3 * a.nbytes / seconds[2],
        launch_seconds=seconds[3] / (2 * _REPEATS),
    )


def _conv(size: int) -> tuple[Callable[[], object], float]:
    """What runs a dense conv of that size once, and its MULs."""
    x, weight = torch.ones(1, _CHANNELS, _SIZE, _SIZE), torch.ones(_CHANNELS, _CHANNELS, size, size)
    padding = size // 2
    op = ops.Conv(stride=(1, 1), padding=((padding, padding),) * 2, dilation=(1, 1), groups=1)
    stored = Param.of(weight.numpy(), role="weight", dtype="f32")
    return lambda: F.conv2d(x, weight, padding=padding), work(op, (stored,), x.numel(), x.numel()).muls


def _tiny_ops() -> None:
    x = weight = torch.ones(1, 1, 1, 1)
    for _ in range(_REPEATS):
        torch.add(F.conv2d(x, weight), x)


def _medians(*runs: Callable[[], object]) -> list[float]:
    """The median seconds of a call of each, after one that warms up."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    began = perf_counter()
    while len(times[0]) < FEWEST or (len(times[0]) < MOST and perf_counter() - began < SECONDS):
        for run, seconds in zip(runs, times, strict=True):
            start = perf_counter()
            run()
            seconds.append(perf_counter() - start)
    return [max(median(seconds), _SHORTEST) for seconds in times]
