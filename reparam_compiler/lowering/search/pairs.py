"""A measurement is one of a pair: the rule's kernels, then the candidate: what slows the machine for a while slows both.

Wherever the machine is: this is what a process here does, and what a server far away does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.machines import Machines

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array

TOLERANCE = {"float16": 2e-2, "float32": 1e-3, "float64": 1e-6}
"""What a candidate may differ by from the rule's kernel, of the largest output: one that is wrong differs by far more. Of other
dtypes nothing."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """How a candidate is measured; as in `asked.SearchOptions`."""

    repeat: int
    number: int
    min_repeat_ms: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds of each measurement, or why there are none. beside: of the rule's kernels, each run just before."""

    seconds: tuple[float, ...] = ()
    beside: tuple[float, ...] = ()
    failure: str = ""


def in_pairs(candidate: Machines, rule: Machines | None, arrays: "Sequence[Array]", repeats: Repeats) -> Outcome:
    """What a candidate takes. rule: None where the candidate is the rule's itself.

    Raises: LoweringError where its output is not what the rule's kernels give.
    """
    if rule is None:
        return Outcome(tuple(_seconds(candidate, arrays, repeats) for _ in range(repeats.repeat)))
    for found, expected in zip(candidate.run(arrays), rule.run(arrays), strict=True):
        check_equal(found, expected)
    pairs = [(_seconds(rule, arrays, repeats), _seconds(candidate, arrays, repeats)) for _ in range(repeats.repeat)]
    return Outcome(tuple(seconds for _, seconds in pairs), tuple(seconds for seconds, _ in pairs))


def _seconds(machines: Machines, arrays: "Sequence[Array]", repeats: Repeats) -> float:
    """Of one measurement."""
    return machines.measured(arrays, 1, repeats.number, least_ms=repeats.min_repeat_ms, cold=True)[0]


def check_equal(found: "Array", expected: "Array") -> None:
    """Raises LoweringError where an output is not the expected one. Infinities and NaN of the same places are equal."""
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        raise LoweringError("its output differs from the rule's; expected infinities and NaN in the same places")
    allowed = TOLERANCE.get(str(expected.dtype), 0.0) * float(np.abs(theirs[finite]).max(initial=0))
    error = float(np.abs(ours[finite] - theirs[finite]).max(initial=0))
    if not error <= allowed:
        raise LoweringError(f"its output differs from the rule's by {error:.2g}; expected at most {allowed:.2g}")
