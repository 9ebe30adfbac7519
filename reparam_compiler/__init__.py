"""Fuses the parallel conv-BN branches of any traced ConvNet into plain convs, prunes channels, and lowers to TVM.

fused = reparam_compiler.fuse(model, example_inputs)
"""

from reparam_compiler._api import fuse, inspect
from reparam_compiler.errors import (
    InfeasiblePruneError,
    InvalidGraphError,
    LoweringError,
    ReparamError,
    RewriteError,
    TvmMissingError,
    UnsupportedModelError,
    VerificationError,
)
from reparam_compiler.passes.registry import register_linear
from reparam_compiler.report import FuseReport

__version__ = "0.1.0"

__all__ = [
    "FuseReport",
    "InfeasiblePruneError",
    "InvalidGraphError",
    "LoweringError",
    "ReparamError",
    "RewriteError",
    "TvmMissingError",
    "UnsupportedModelError",
    "VerificationError",
    "fuse",
    "inspect",
    "register_linear",
]
