"""Fuses the parallel conv-BN branches of any traced ConvNet into plain convs, prunes channels, and lowers to TVM.

fused = reparam_compiler.fuse(model, example_inputs)
"""

from reparam_compiler._api import compile, fuse, inspect, load, prune, tune
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
from reparam_compiler.passes.registry import register_linear
from reparam_compiler.report import FuseReport, PruneReport

__version__ = "0.1.0"

__all__ = [
    "FuseReport",
    "InfeasiblePruneError",
    "InvalidGraphError",
    "LoweringError",
    "PruneReport",
    "ReparamError",
    "RewriteError",
    "TvmMissingError",
    "UnrepairedPruneWarning",
    "UnsupportedModelError",
    "VerificationError",
    "compile",
    "fuse",
    "inspect",
    "load",
    "prune",
    "register_linear",
    "tune",
]
