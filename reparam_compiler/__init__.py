"""Fuses the parallel conv-BN branches of any traced ConvNet into plain convs, prunes channels, and lowers to TVM.

    fused = reparam_compiler.fuse(model, example_inputs)

The names below are imported when they are first asked for: `load` runs where torch is not installed, and nothing imports onnx
or tvm before it is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from reparam_compiler.errors import (
    InfeasiblePruneError,
    InvalidGraphError,
    LoweringError,
    ReparamError,
    RewriteError,
    TvmMissingError,
    UnrepairedPruneWarning,
    UnsupportedModelError,
    VerificationError,
)

if TYPE_CHECKING:
    from reparam_compiler._api import compile, fuse, inspect, tune
    from reparam_compiler._compare import Equivalence, equivalent
    from reparam_compiler._prune import IterativePruner, apply_manifest, prune
    from reparam_compiler.calibration import PreprocessingWarning
    from reparam_compiler.cost import CostModel
    from reparam_compiler.lowering import load
    from reparam_compiler.machine import measure_costs
    from reparam_compiler.manifest import Manifest
    from reparam_compiler.passes.registry import register_linear
    from reparam_compiler.report import FuseReport, PruneReport

__version__ = "0.1.0"

__all__ = [
    "CostModel",
    "Equivalence",
    "FuseReport",
    "InfeasiblePruneError",
    "InvalidGraphError",
    "IterativePruner",
    "LoweringError",
    "Manifest",
    "PreprocessingWarning",
    "PruneReport",
    "ReparamError",
    "RewriteError",
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
    "prune",
    "register_linear",
    "tune",
]

_HOMES = {
    **dict.fromkeys(("compile", "fuse", "inspect", "tune"), "reparam_compiler._api"),
    **dict.fromkeys(("IterativePruner", "apply_manifest", "prune"), "reparam_compiler._prune"),
    **dict.fromkeys(("Equivalence", "equivalent"), "reparam_compiler._compare"),
    "CostModel": "reparam_compiler.cost",
    "Manifest": "reparam_compiler.manifest",
    "PreprocessingWarning": "reparam_compiler.calibration",
    "load": "reparam_compiler.lowering",
    "measure_costs": "reparam_compiler.machine",
    "register_linear": "reparam_compiler.passes.registry",
    **dict.fromkeys(("FuseReport", "PruneReport"), "reparam_compiler.report"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'reparam_compiler' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
