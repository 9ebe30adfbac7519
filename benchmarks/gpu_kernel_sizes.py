"""Table 1: one conv of 2048 channels in and out on 56 x 56 pixels, 32 images, by the size of its kernel.

    TFLOPS = 2 * batch * H * W * C * C * k * k / seconds / 10^12        a multiply-add counts as two, as in the paper's table

The paper's 3x3 does four times the work a second of the others, by Winograd; whether it does here is what this shows.
"""

import copy
import gc

import torch
from torch import nn

from benchmarks.gpu_engines import EAGER, OURS, Maker, available, ours
from benchmarks.gpu_measure import MODES, Budget, Call, Results, precision, report, time_calls
from benchmarks.gpu_settings import KernelSize, Settings

PART = "kernel sizes"
SIZES = (1, 3, 5, 7)
PAPER = {1: (84.5, 9.96), 3: (198.8, 38.10), 5: (2092.5, 10.57), 7: (4394.3, 9.38)}
"""Milliseconds and TFLOPS on a 1080Ti in fp32."""


def measure(settings: Settings, results: Results, ends: float) -> None:
    """Time each kernel size in every mode, as far as the time goes; small kernels first."""
    plan = [(size, mode) for size in SIZES for mode in settings.modes]
    budget = Budget(ends, 2 * len(plan), settings.longest)
    for size, mode in plan:
        seconds = budget.take(2)
        where = f"{PART}: {size}x{size}, {mode}, batch {settings.kernel_size.batch}"
        if seconds == 0:
            results.left_out.append(f"{where}: no time left")
            continue
        try:
            measure_one(size, mode, where, settings, results, seconds, ends)
        except torch.OutOfMemoryError:
            results.left_out.append(f"{where}: out of memory")
        gc.collect()


def measure_one(size: int, mode: str, where: str, settings: Settings, results: Results, seconds: float, ends: float) -> None:
    """Time one conv by torch eager and by ours."""
    conv, chosen = settings.kernel_size, MODES[mode]
    torch.manual_seed(0)
    net = nn.Conv2d(conv.channels, conv.channels, size, padding=size // 2, bias=False).eval()
    x = torch.randn(conv.batch, conv.channels, conv.image, conv.image, device=settings.device, dtype=chosen.dtype)
    x = x.contiguous(memory_format=chosen.memory_format)
    cast = copy.deepcopy(net).to(settings.device).to(dtype=chosen.dtype, memory_format=chosen.memory_format)
    makers: dict[str, Maker] = {EAGER: lambda: lambda: cast(x), OURS: lambda: ours(net, x, chosen, settings)}
    with torch.inference_mode(), precision(chosen):
        calls = {(f"{size}x{size}", engine): Call(run) for engine, run in available(makers, where, results, ends).items()}
        found = time_calls(PART, calls, mode, conv.batch, seconds, settings.device)
    results.measurements += found
    report(found)


def tera_operations(size: int, conv: KernelSize, milliseconds: float) -> float:
    """TFLOPS of one conv, a multiply-add counted as two."""
    return 2 * conv.batch * conv.image**2 * conv.channels**2 * size**2 / milliseconds / 1e9
