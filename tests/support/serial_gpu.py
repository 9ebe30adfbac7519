"""GPU schedules run on a CPU: every loop bound to blocks and threads becomes a serial one, and LLVM compiles the rest.

What this shows: the scheduled loops compute what they should, over ragged tiles too, with the buffers that the schedule
made. What it cannot show: where barriers go (TVM places them later), the intrinsics of tensor cores, and speed. A staged
tile is copied whole by each iteration of the loop that stood for a thread, which is what all threads do together.
"""

from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir.transform import Sequential
from tvm.relax.backend.cpu_generic import pipeline as cpu_pipeline

from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr

TARGET = {"kind": "llvm", "opt-level": 0}
"""Unoptimised: LLVM takes longer to optimise unrolled loops than they take to run."""


def run_serially(func: Any, *inputs: np.ndarray, out: tuple[tuple[int, ...], str]) -> np.ndarray:
    """What a scheduled PrimFunc writes into its last buffer, of shape and dtype `out`."""
    built = tvm.compile(serial(func).with_attr("global_symbol", "main"), target=TARGET)
    result = tvm.runtime.tensor(np.full(out[0], np.nan, out[1]))
    built["main"](*(tvm.runtime.tensor(np.ascontiguousarray(array)) for array in inputs), result)
    return result.numpy()


def serial(func: Any) -> Any:
    """The function with its thread loops made serial, and without what only a GPU understands."""

    def unbound(loop: Any) -> Any:
        kind = loop.kind if loop.kind != tirx.ForKind.THREAD_BINDING else tirx.ForKind.SERIAL
        kept = {key: value for key, value in loop.annotations.items() if key.startswith("software_pipeline")}
        return tirx.For(loop.loop_var, loop.min, loop.extent, kind, loop.body, None, kept)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, unbound), order="post"))


def run_net_serially(module: Any, *inputs: np.ndarray) -> list[np.ndarray]:
    """What a model lowered for a GPU computes: its calls by a CPU's virtual machine, each kernel made serial."""
    for variable, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc):
            module.update_func(variable, serial(func))
    target = tvm.target.Target(TARGET)
    passes = Sequential(cpu_pipeline.dataflow_lower_passes(target) + cpu_pipeline.finalize_passes(target))
    with filter_stderr():
        machine = relax.VirtualMachine(tvm.compile(module, target=target, relax_pipeline=passes), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(array)) for array in inputs))
    return [leaf.numpy() for leaf in ([result] if isinstance(result, tvm.runtime.Tensor) else list(result))]
