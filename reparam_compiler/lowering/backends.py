"""The kinds of target, one line each."""

from tvm.target import Target

from reparam_compiler.lowering.backend import Backend
from reparam_compiler.lowering.cpu.backend import CpuBackend
from reparam_compiler.lowering.gpu.cuda.backend import CudaBackend

BACKENDS: dict[str, type[Backend]] = {backend.kind: backend for backend in (CpuBackend, CudaBackend)}
"""By TVM's name of the kind: `BACKENDS["llvm"]` is `CpuBackend`."""


def backend_for(target: Target) -> Backend:
    """The backend of a target that `resolve` gave, bound to it."""
    return BACKENDS[str(target.kind.name)](target)


def code_listings() -> dict[str, tuple[str, str]]:
    """Of each listing of code: the kind of the runtime module that holds it, and TVM's name of the format.

    Example: `code_listings()["asm"]` is `("llvm", "asm")`.
    """
    return {name: (kind, form) for kind, backend in BACKENDS.items() for name, form in backend.code.items()}
