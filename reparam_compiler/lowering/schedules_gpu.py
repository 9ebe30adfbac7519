"""GPU schedules without a search: every function gets a valid one, and none may be left for the host.

TVM compiles a function without thread bindings for the host and says nothing; the model would then read GPU memory from
the CPU. `unbound` finds such functions, and `schedule_gpu` refuses them.
"""

from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import dlight

from reparam_compiler.errors import LoweringError


def schedule_gpu(module: Any) -> Any:
    """dlight's rules, the general one last, for every PrimFunc of `module`.

    Raises: LoweringError naming the functions that no rule bound to threads.
    """
    rules = dlight.ApplyDefaultSchedule(
        dlight.gpu.Matmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    )
    module = rules(module)
    if left := unbound(module):
        raise LoweringError(
            f"{', '.join(left)}: no GPU schedule rule binds it to threads, so it would run on the host; "
            "expected thread bindings in every kernel. Compile for llvm, or rewrite the op in the model"
        )
    return module


def unbound(module: Any) -> list[str]:
    """The PrimFuncs of `module` that compute something outside every loop bound to GPU threads."""
    return [
        str(variable.name_hint)
        for variable, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and not _is_bound(func)
    ]


def _is_bound(func: Any) -> bool:
    sch = tvm.s_tir.Schedule(func)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    return all(any(sch.get(loop).thread_binding is not None for loop in sch.get_loops(block)) for block in blocks)
