"""Fuses the parallel conv-BN branches of any traced ConvNet into plain convs, prunes channels, and lowers to TVM.

    fused = reparam_compiler.fuse(model, example_inputs)

The names below are imported when they are first asked for: `load` runs where torch is not installed, and nothing imports onnx
or tvm before it is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from reparam_compiler.core.packages import missing_package
from reparam_compiler.errors import (
    HarmfulRepairWarning,
    InfeasiblePruneError,
    InvalidGraphError,
    LoweringError,
    ReparamError,
    RewriteError,
    TrainingModeWarning,
    TvmMissingError,
    UnrepairedPruneWarning,
    UnsupportedModelError,
    VerificationError,
)

if TYPE_CHECKING:
    from reparam_compiler.api.comparing import equivalent
    from reparam_compiler.api.compiling import compile, tune
    from reparam_compiler.api.fusing import fuse, inspect
    from reparam_compiler.api.pruning import apply_manifest, prune
    from reparam_compiler.api.report import FuseReport, PruneReport
    from reparam_compiler.api.rounds import IterativePruner
    from reparam_compiler.checking.equivalent import Equivalence
    from reparam_compiler.cost.measure import measure_costs
    from reparam_compiler.cost.model import CostModel
    from reparam_compiler.lowering import CompileOptions, CpuFamily, Executable, Rpc, TuneResult, load, measure_cpu
    from reparam_compiler.models.calibration import PreprocessingWarning
    from reparam_compiler.passes.fusion.registry import LinearRule, register_linear
    from reparam_compiler.passes.pruning.coupling.registry import CouplingRule, register_coupling
    from reparam_compiler.passes.pruning.criteria.base import Criterion, Loss, Scores, Scoring, register_criterion
    from reparam_compiler.passes.pruning.manifest import Manifest

__version__ = "0.1.0"

__all__ = [
    "CompileOptions",
    "CostModel",
    "CouplingRule",
    "CpuFamily",
    "Criterion",
    "Equivalence",
    "Executable",
    "FuseReport",
    "HarmfulRepairWarning",
    "InfeasiblePruneError",
    "InvalidGraphError",
    "IterativePruner",
    "LinearRule",
    "Loss",
    "LoweringError",
    "Manifest",
    "PreprocessingWarning",
    "PruneReport",
    "ReparamError",
    "RewriteError",
    "Rpc",
    "Scores",
    "Scoring",
    "TrainingModeWarning",
    "TuneResult",
    "TvmMissingError",
    "UnrepairedPruneWarning",
    "UnsupportedModelError",
    "VerificationError",
    "apply_manifest",
    "compile",
    "equivalent",
    "fuse",
    "inspect",
    "load",
    "measure_costs",
    "measure_cpu",
    "prune",
    "register_coupling",
    "register_criterion",
    "register_linear",
    "tune",
]

_HOMES = {
    **dict.fromkeys(("fuse", "inspect"), "reparam_compiler.api.fusing"),
    **dict.fromkeys(("compile", "tune"), "reparam_compiler.api.compiling"),
    **dict.fromkeys(("apply_manifest", "prune"), "reparam_compiler.api.pruning"),
    "IterativePruner": "reparam_compiler.api.rounds",
    "Equivalence": "reparam_compiler.checking.equivalent",
    "equivalent": "reparam_compiler.api.comparing",
    "CostModel": "reparam_compiler.cost.model",
    "Manifest": "reparam_compiler.passes.pruning.manifest",
    "PreprocessingWarning": "reparam_compiler.models.calibration",
    **dict.fromkeys(
        ("CompileOptions", "CpuFamily", "Executable", "Rpc", "TuneResult", "load", "measure_cpu"), "reparam_compiler.lowering"
    ),
    "measure_costs": "reparam_compiler.cost.measure",
    **dict.fromkeys(("CouplingRule", "register_coupling"), "reparam_compiler.passes.pruning.coupling.registry"),
    **dict.fromkeys(("LinearRule", "register_linear"), "reparam_compiler.passes.fusion.registry"),
    **dict.fromkeys(
        ("Criterion", "Loss", "Scores", "Scoring", "register_criterion"), "reparam_compiler.passes.pruning.criteria.base"
    ),
    **dict.fromkeys(("FuseReport", "PruneReport"), "reparam_compiler.api.report"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'reparam_compiler' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise missing_package(error) or error from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
