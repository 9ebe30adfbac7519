"""The constants of a CPU from what kernels took on it: damped Gauss-Newton steps on their logarithms.

    least of    sum over kernels (log estimate - log seconds)^2  +  sum over constants (PRIOR (log c - log start))^2

The second sum decides what the kernels do not tell apart: a constant that no estimate depends on stays where it started. An
estimate is a maximum of several sums, so a fit can stay in a corner: it starts from every table that is known, and the
least wins.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
from jaxtyping import Float64

from reparam_compiler.lowering.conv.choice import cycles
from reparam_compiler.lowering.cpu.families import Costs
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.timing import Seconds

PRIOR = 0.2
"""A constant that is off by a factor of e from its start weighs as much as a kernel that is estimated wrong by 20 %."""
STEPS = 40
NEARBY = 0.05
"""By how much a logarithm is moved each way to see what it changes."""
FARTHEST = 1.0
"""How far a step moves a logarithm at most."""
STIFFEST = 1e6
"""The damping above which no step lessens the sum any more."""


def fitted(seconds: Seconds, unit: VectorUnit, hertz: float, starts: Sequence[Costs]) -> Costs:
    """The costs by which a unit's estimates are nearest to what kernels took.

    Args:
        hertz: cycles a second.
        starts: tables to begin at; of equally good fits the first one's is taken.
    """
    return min((_from(start, seconds, unit, hertz) for start in starts), key=lambda found: found[0])[1]


def _from(start: Costs, seconds: Seconds, unit: VectorUnit, hertz: float) -> tuple[float, Costs]:
    """The least sum that is found from one start, and its costs."""
    begun = np.log(astuple(start))

    def misses(logs: Float64[np.ndarray, "C"]) -> Float64[np.ndarray, "K"]:
        moved = replace(unit, costs=_costs(logs))
        of_kernels = [math.log(cycles(*kernel, moved) / hertz / taken) for kernel, taken in seconds.items()]
        return np.array([*of_kernels, *PRIOR * (logs - begun)])

    logs, missed, damping = begun, misses(begun), 1.0
    for _ in range(STEPS):
        apart = NEARBY * np.eye(len(logs))
        slopes = np.stack([(misses(logs + one) - misses(logs - one)) / (2 * NEARBY) for one in apart], axis=1)
        while damping < STIFFEST:
            step = np.linalg.solve(slopes.T @ slopes + damping * np.eye(len(logs)), -slopes.T @ missed)
            nearer = misses(logs + np.clip(step, -FARTHEST, FARTHEST))
            if nearer @ nearer < missed @ missed:
                logs, missed, damping = logs + np.clip(step, -FARTHEST, FARTHEST), nearer, damping / 4
                break
            damping *= 4
        else:
            break
    return float(missed @ missed), _costs(logs)


def _costs(logs: Float64[np.ndarray, "C"]) -> Costs:
    return Costs(*map(float, np.exp(logs)))
