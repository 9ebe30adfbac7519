"""The kinds of target, one line each."""

import functools

from tvm.target import Target

from reparam_compiler.lowering.backend import Backend, PointKind
from reparam_compiler.lowering.cpu.backend import CpuBackend
from reparam_compiler.lowering.gpu.cuda.backend import CudaBackend
from reparam_compiler.lowering.gpu.opencl.backend import OpenClBackend

BACKENDS: dict[str, type[Backend]] = {backend.kind: backend for backend in (CpuBackend, CudaBackend, OpenClBackend)}
"""By TVM's name of the kind: `BACKENDS["llvm"]` is `CpuBackend`."""


def backend_for(target: Target) -> Backend:
    """The backend of a target that `resolve` gave, bound to it."""
    return BACKENDS[str(target.kind.name)](target)


@functools.cache
def point_kinds() -> dict[str, PointKind]:
    """The points of every kind of target, by the names of their classes."""
    return {point.__name__: (point, tile) for backend in BACKENDS.values() for point, tile in backend.points()}


def code_listings() -> dict[str, str]:
    """Of each listing of code the kind of target that has it.

    Example: `code_listings()["asm"]` is "llvm".
    """
    return {name: kind for kind, backend in BACKENDS.items() for name in backend.code}
