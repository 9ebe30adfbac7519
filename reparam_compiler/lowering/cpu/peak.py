"""How many float32 operations per second this machine's cores can do: measured, not looked up.

    peak = 2 lanes accumulators steps threads / t      float32 multiply-adds on registers alone, the best of several runs

The kernel does what a GEMM's inner loop does without its loads: `ACCUMULATORS` vectors per thread, each step multiplied by one
and added to another vector. So the peak holds for this machine at its clock of today. One vector alone waits for itself, which
tells the clock:

    clock = latency steps / t
"""

from typing import Any

import numpy as np
import tvm
from tvm import te, tirx

from reparam_compiler.lowering.conv.choice import FMA_LATENCY
from reparam_compiler.lowering.cpu.machine import vector_unit
from reparam_compiler.lowering.cpu.registers import TIR_PIPELINE

ACCUMULATORS = 12
"""Two per port and cycle of latency on today's cores, and few enough for 16 registers."""
STEPS = 20_000
REPEATS = 20


def measure_peak(target: Any, threads: int) -> float:
    """float32 operations per second of `threads` cores that multiply and add in registers alone, the best of some runs."""
    lanes = vector_unit(target).lanes("float32")
    return 2.0 * threads * ACCUMULATORS * lanes * STEPS / _seconds(target, threads, ACCUMULATORS, lanes)


def measure_clock(target: Any) -> float:
    """Cycles per second of a core at work, by multiply-adds of which each takes `FMA_LATENCY` and waits for the one before."""
    return FMA_LATENCY * STEPS / _seconds(target, 1, 1, vector_unit(target).lanes("float32"))


def _seconds(target: Any, threads: int, accumulators: int, lanes: int) -> float:
    """The least seconds of the kernel."""
    module = tvm.IRModule({"main": _peak_kernel(threads, accumulators, lanes)})
    kernel = tvm.compile(module, target=target, tir_pipeline=TIR_PIPELINE)
    device = tvm.cpu(0)
    factors = tvm.runtime.tensor(np.full(lanes, 0.999, "float32"), device)
    out = tvm.runtime.tensor(np.zeros((threads, accumulators, lanes), "float32"), device)
    evaluator = kernel.mod.time_evaluator("main", device, number=1, repeat=REPEATS)
    return float(min(evaluator(factors, out).results))


def _peak_kernel(threads: int, accumulators: int, lanes: int) -> Any:
    """out[thread, accumulator, lane] = y x + x, `STEPS` times, y in registers."""
    multiply_add = te.comm_reducer(lambda y, x: y * x + x, lambda dtype: tirx.const(0, dtype), name="multiply_add")
    factors = te.placeholder((lanes,), name="factors")
    steps = te.reduce_axis((0, STEPS), name="steps")
    out = te.compute((threads, accumulators, lanes), lambda t, a, lane: multiply_add(factors[lane], axis=steps), name="out")
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
