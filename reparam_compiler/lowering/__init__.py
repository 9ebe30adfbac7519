"""Models to machine code: a fused or pruned model in, an `Executable` out.

    model --importer--> Relax --layout, algorithms--> kernels --schedules--> library --artifact--> one file

This is the only package that imports tvm, and nothing imports this package until something is to be compiled.
Where tvm is missing, importing it raises `TvmMissingError` with the command that installs it.
"""

from reparam_compiler.errors import TvmMissingError

try:
    import tvm as _tvm
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in {"tvm", "tvm_ffi"}:
        raise
    raise TvmMissingError(
        f"{missing.name} is not installed, and compiling, tuning and running need it: "
        "pip install 'reparam_compiler[tvm]'"
    ) from missing

from reparam_compiler.lowering.artifact import Executable, TensorSpec, Timing, load
from reparam_compiler.lowering.build import compile
from reparam_compiler.lowering.tune import TunedTask, TuneResult, tune

__all__ = ["Executable", "TensorSpec", "Timing", "TuneResult", "TunedTask", "compile", "load", "tune"]

del _tvm
