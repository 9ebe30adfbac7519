"""Models to machine code: a fused or pruned model in, an `Executable` out.

    model --importer--> Relax --layout, algorithms--> kernels --schedules--> library --artifact--> one file

This is the only package that imports tvm, and nothing imports this package until something is to be compiled.
Where tvm is missing, importing it raises `TvmMissingError` with the command that installs it.
"""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from reparam_compiler.core.packages import install_line
from reparam_compiler.errors import TvmMissingError

for package in ("tvm", "tvm_ffi"):
    if find_spec(package) is None:
        raise TvmMissingError(
            f"{package} is not installed, and compiling, tuning and running need it: {install_line('tvm')}; "
            f"to run artifacts alone: {install_line('serve')}"
        )

if TYPE_CHECKING:
    from reparam_compiler.lowering.build import compile, measure_cpu
    from reparam_compiler.lowering.cpu.families import CpuFamily
    from reparam_compiler.lowering.options import CompileOptions
    from reparam_compiler.lowering.rpc.address import Rpc
    from reparam_compiler.lowering.runtime.description import TensorSpec, Timing
    from reparam_compiler.lowering.runtime.executable import Executable
    from reparam_compiler.lowering.runtime.loading import load
    from reparam_compiler.lowering.search.asked import SearchOptions, TunedTask, TuneResult
    from reparam_compiler.lowering.search.progress import TuneStep
    from reparam_compiler.lowering.search.tuning import tune

__all__ = [
    "CompileOptions",
    "CpuFamily",
    "Executable",
    "Rpc",
    "SearchOptions",
    "TensorSpec",
    "Timing",
    "TuneResult",
    "TuneStep",
    "TunedTask",
    "compile",
    "load",
    "measure_cpu",
    "tune",
]

_HOMES = {
    "CompileOptions": "options",
    "CpuFamily": "cpu.families",
    "Executable": "runtime.executable",
    "Rpc": "rpc.address",
    "TensorSpec": "runtime.description",
    "Timing": "runtime.description",
    "compile": "build",
    "load": "runtime.loading",
    "measure_cpu": "build",
    "tune": "search.tuning",
    "SearchOptions": "search.asked",
    "TuneResult": "search.asked",
    "TuneStep": "search.progress",
    "TunedTask": "search.asked",
}


def __getattr__(name: str) -> Any:
    """The names above, on first use: tvm takes seconds to import, and loading an artifact takes tvm and numpy alone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
