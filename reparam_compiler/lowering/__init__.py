"""Models to machine code: a fused or pruned model in, an `Executable` out.

    model --importer--> Relax --layout, algorithms--> kernels --schedules--> library --artifact--> one file

This is the only package that imports tvm, and nothing imports this package until something is to be compiled.
Where tvm is missing, importing it raises `TvmMissingError` with the command that installs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from reparam_compiler.errors import TvmMissingError

try:
    import tvm as _  # noqa: F401
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in {"tvm", "tvm_ffi"}:
        raise
    raise TvmMissingError(
        f"{missing.name} is not installed, and compiling, tuning and running need it: pip install 'reparam_compiler[tvm]'"
    ) from missing

from reparam_compiler.lowering.runtime.description import TensorSpec, Timing
from reparam_compiler.lowering.runtime.executable import Executable, load

if TYPE_CHECKING:
    from reparam_compiler.lowering.build import compile
    from reparam_compiler.lowering.options import CompileOptions
    from reparam_compiler.lowering.search.tuning import TunedTask, TuneResult, tune

__all__ = ["CompileOptions", "Executable", "TensorSpec", "Timing", "TuneResult", "TunedTask", "compile", "load", "tune"]

_LATER = {
    "CompileOptions": "options",
    "compile": "build",
    "tune": "search.tuning",
    "TuneResult": "search.tuning",
    "TunedTask": "search.tuning",
}


def __getattr__(name: str) -> Any:
    """The names that only compiling and tuning need, on first use: loading an artifact takes tvm and numpy alone."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
