"""The words that a caller chooses by. Nothing heavy is imported here: a command shows them before torch is loaded."""

from typing import Literal, get_args

Policy = Literal["cost", "always"]
AllocationName = Literal["uniform", "global", "sensitivity"]
ALLOCATIONS: tuple[AllocationName, ...] = get_args(AllocationName)
Quality = Literal["fast", "standard", "high"]
CRITERIA = (
    *("energy", "lasso", "taylor", "hessian", "l1", "l2", "bn_scale", "fpgm", "geometric", "random", "obs", "obs_patches"),
)
"""The criteria of the library; a caller may register others."""
