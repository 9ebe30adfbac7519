"""Sums of a tile in registers: TVM 0.27 takes what a kernel calls local from a pool of the heap, by two calls for each tile.

    alloc "local"    --LowerTVMBuiltin-->    TVMBackendAllocWorkspace … TVMBackendFreeWorkspace
    alloc "local", kept                      a place on the stack, which LLVM holds in registers

On A0's stem the two calls take as long as the arithmetic of a tile. `TIR_PIPELINE` is TVM's own pipeline with the mark that
keeps them, for `tvm.compile(tir_pipeline=…)`.
"""

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir.transform import Sequential
from tvm.tirx.transform import prim_func_pass

from reparam_compiler.lowering.relax.memory_plan import REGISTERS

TIR_PIPELINE = "reparam_cpu"
KEPT = "disable_lower_builtin"
"""The annotation by which TVM leaves an allocation to code generation."""


@prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator, unused-ignore]
def keep_registers(func: Any, _module: Any, _context: Any) -> Any:
    """Marks each local allocation as one that stays where it is."""

    def kept(allocation: Any) -> Any:
        buffer = allocation.buffer
        if buffer.scope() != REGISTERS:
            return allocation
        return tirx.AllocBuffer(buffer, {**dict(allocation.annotations or {}), KEPT: tirx.IntImm("bool", 1)})

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, kept)))


def _pipeline() -> tuple[Any, Any, Any]:
    passes, host, device = tirx.get_tir_pipeline("s_tir")
    return passes, lambda: Sequential([keep_registers, host()]), device


tirx.register_tir_pipeline(TIR_PIPELINE, _pipeline)
