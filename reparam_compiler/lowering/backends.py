"""The kinds of target, one line each."""

from tvm.target import Target

from reparam_compiler.lowering.backend import Backend
from reparam_compiler.lowering.cpu.backend import CpuBackend
from reparam_compiler.lowering.gpu.cuda.backend import CudaBackend
from reparam_compiler.lowering.gpu.opencl.backend import OpenClBackend

BACKENDS: dict[str, type[Backend]] = {backend.kind: backend for backend in (CpuBackend, CudaBackend, OpenClBackend)}
"""By TVM's name of the kind: `BACKENDS["llvm"]` is `CpuBackend`."""


def backend_for(target: Target) -> Backend:
    """The backend of a target that `resolve` gave, bound to it."""
    return BACKENDS[str(target.kind.name)](target)


def code_listings() -> dict[str, str]:
    """Of each listing of code the kind of target that has it.

    Example: `code_listings()["asm"]` is "llvm".
    """
    return {name: kind for kind, backend in BACKENDS.items() for name in backend.code}
