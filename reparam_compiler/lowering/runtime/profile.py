"""Where the time of a run goes: each kernel's, and how much of the machine's peak that is.

    seconds of a call = t(after) - t(before)       told by what runs it (`machines`); the median over several runs

The peak is the backend's (`cpu/peak.py` measures a CPU's). The whole run is timed by itself, as it runs otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.runtime.description import Kernel
from reparam_compiler.lowering.runtime.executable import Executable
from reparam_compiler.lowering.runtime.launchers import on_launcher
from reparam_compiler.lowering.target import resolve


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of a kernel in a run.

    seconds: the median over the runs. share: of the sum of all calls.
    flops: of the direct form, a multiply-add being two; 0 where no recipe counted them.
    error: the relative error of the algorithm on the layer's weights, where a recipe measured it.
    """

    kernel: str
    algorithm: str
    shape: tuple[int, ...]
    seconds: float
    share: float
    flops: int
    error: float | None


@dataclass(frozen=True, slots=True)
class Profile:
    """The calls of one run in their order.

    kernel_seconds: the sum of the calls. run_seconds: the median of whole runs, in which no call is timed.
    peak_flops: float32 operations per second that this machine's registers allow; None where none is measured, as on a GPU or
        on a machine far away.
    threads: of the peak.
    """

    layers: tuple[Layer, ...]
    kernel_seconds: float
    run_seconds: float
    runs: int
    peak_flops: float | None
    threads: int


def profile(executable: Executable, arrays: Sequence[Any] = (), *, runs: int = 11) -> Profile:
    """Time each kernel of a compiled model, where it runs.

    Args:
        arrays: the inputs in order, of one of the batches; random ones of the smallest where none are given.
        runs: how many runs the medians are taken over, after one that is not counted.

    Raises: LoweringError where this machine cannot run the model, inputs do not fit, `runs` is not positive, or the model's
    kernels are launched as one CUDA graph, which hides them.
    """
    if runs < 1:
        raise LoweringError(f"profile: found runs={runs}; expected 1 or more")
    executable = executable.fitting(arrays)
    calls = executable.profiled(arrays, runs)
    kernels = {kernel.name: kernel for kernel in executable.kernels}
    names, shapes = [call.name for call in calls[0]], [call.shape for call in calls[0]]
    medians = np.median([[call.seconds for call in run] for run in calls], axis=0)
    total = float(medians.sum())
    layers = []
    for name, shape, seconds in zip(names, shapes, medians, strict=True):
        kernel = kernels.get(name, Kernel(name, "general"))
        share = float(seconds) / total if total else 0.0
        layers.append(Layer(name, kernel.algorithm, shape, float(seconds), share, kernel.flops, kernel.error))
    whole = executable.timing(*arrays, repeat=runs).median
    here = executable.variants[0].ready().here
    peak = on_launcher(executable.threads, backend_for(resolve(executable.target)).peak) if here else None
    return Profile(tuple(layers), total, whole, runs, peak.flops if peak else None, peak.threads if peak else 0)
