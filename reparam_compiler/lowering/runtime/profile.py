"""Where the time of a run goes: each kernel's, and how much of the machine's peak that is.

    seconds of a call = t(after) - t(before)       told by the virtual machine's instrument; the median over several runs
    peak = 2 lanes accumulators steps threads / t  float32 multiply-adds on registers alone, the best of several runs

The peak kernel does what a GEMM's inner loop does without its loads: `ACCUMULATORS` vectors per thread, each step multiplied
by one and added to another vector. It is measured, not looked up, so it holds for this machine at its clock of today.
The instrument costs some microseconds a call, which count in no kernel; the whole run is timed without it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.executable import Executable, Kernel
from reparam_compiler.lowering.target import is_gpu, resolve, vector_unit

ACCUMULATORS = 12
"""Two per port and cycle of latency on today's cores, and few enough for 16 registers."""
STEPS = 20_000
REPEATS = 20
BUILTIN = "vm.builtin."
GRAPH = "vm.builtin.cuda_graph."


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

    kernel_seconds: the sum of the calls. run_seconds: the median of whole runs, without the instrument.
    peak_flops: float32 operations per second that this machine's registers allow; None on a GPU, where none is measured.
    threads: of the peak.
    """

    layers: tuple[Layer, ...]
    kernel_seconds: float
    run_seconds: float
    runs: int
    peak_flops: float | None
    threads: int


def profile(executable: Executable, arrays: Sequence[Any] = (), *, runs: int = 11) -> Profile:
    """Time each kernel of a compiled model on this machine.

    Args:
        arrays: the inputs in order; random ones where none are given.
        runs: how many runs the medians are taken over, after one that is not counted.

    Raises: LoweringError where this machine cannot run the model, inputs do not fit, `runs` is not positive, or the model's
    kernels are launched as one CUDA graph, which hides them.
    """
    if runs < 1:
        raise LoweringError(f"profile: found runs={runs}; expected 1 or more")
    target = resolve(executable.target)
    calls = _calls(executable, arrays, runs)
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
    threads = 0 if is_gpu(target) else int(tvm.runtime.num_threads())
    peak = None if is_gpu(target) else measure_peak(target, threads)
    return Profile(tuple(layers), total, whole, runs, peak, threads)


def measure_peak(target: Any, threads: int) -> float:
    """float32 operations per second of `threads` cores that multiply and add in registers alone, the best of some runs."""
    lanes = vector_unit(target).lanes("float32")
    kernel = tvm.compile(tvm.IRModule({"main": _peak_kernel(threads, lanes)}), target=target)
    device = tvm.cpu(0)
    factors = tvm.runtime.tensor(np.full(lanes, 0.999, "float32"), device)
    out = tvm.runtime.tensor(np.zeros((threads, ACCUMULATORS, lanes), "float32"), device)
    evaluator = kernel.mod.time_evaluator("main", device, number=1, repeat=REPEATS)
    seconds = float(min(evaluator(factors, out).results))
    return 2.0 * threads * ACCUMULATORS * lanes * STEPS / seconds


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    shape: tuple[int, ...]
    seconds: float


def _calls(executable: Executable, arrays: Sequence[Any], runs: int) -> list[list[_Call]]:
    """The kernels' calls of each run, in order."""
    machine, tensors, device = executable.prepared(arrays)
    kept: list[list[_Call]] = []
    started: list[float] = []

    def instrument(_func: Any, symbol: str, before: bool, _result: Any, *arguments: Any) -> int:
        if symbol.startswith(GRAPH):
            raise LoweringError(
                "profile: the kernels of this model are launched as one CUDA graph; to see each, compile it with "
                "--pass-config relax.backend.use_cuda_graph=0"
            )
        if symbol.startswith(BUILTIN):
            return 0
        device.sync()
        if before:
            started.append(time.perf_counter())
        else:
            seconds = time.perf_counter() - started.pop()
            kept[-1].append(_Call(symbol, _shape(arguments), seconds))
        return 0

    machine["main"](*tensors)
    machine.set_instrument(instrument)
    try:
        for _ in range(runs):
            kept.append([])
            machine["main"](*tensors)
    finally:
        machine.set_instrument(lambda *_: 0)
    return kept


def _shape(arguments: Sequence[Any]) -> tuple[int, ...]:
    """The shape of the last tensor among a kernel's arguments, which is its output."""
    tensors = [argument for argument in arguments if isinstance(argument, tvm.runtime.Tensor)]
    return tuple(int(size) for size in tensors[-1].shape) if tensors else ()


def _peak_kernel(threads: int, lanes: int) -> Any:
    """out[thread, accumulator, lane] = y x + x, `STEPS` times, y in registers."""
    multiply_add = te.comm_reducer(lambda y, x: y * x + x, lambda dtype: tirx.const(0, dtype), name="multiply_add")
    factors = te.placeholder((lanes,), name="factors")
    steps = te.reduce_axis((0, STEPS), name="steps")
    out = te.compute((threads, ACCUMULATORS, lanes), lambda t, a, lane: multiply_add(factors[lane], axis=steps), name="out")
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([factors, out])}))
    block = schedule.get_sblock("out")
    thread, accumulator, lane, step = schedule.get_loops(block)
    schedule.reorder(thread, step, accumulator, lane)
    schedule.parallel(thread)
    write = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(write, thread)
    schedule.vectorize(lane)
    schedule.unroll(accumulator)
    for part in (schedule.decompose_reduction(block, step), write):
        *_, accumulator, lane = schedule.get_loops(part)
        schedule.vectorize(lane)
        schedule.unroll(accumulator)
    return schedule.mod["main"]
