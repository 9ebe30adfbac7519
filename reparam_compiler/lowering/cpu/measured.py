"""The rule of a conv's algorithm that prefers what a search measured.

A record wins over the rule where it was measured faster than the rule's first choice by more than the noise, `MARGIN`; where
that was not measured, the rule stays.
"""

import math
from collections.abc import Sequence

from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape
from reparam_compiler.lowering.conv.choice import candidates
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.search.database import ConvRecord

MARGIN = 0.03


class MeasuredAlgorithms:
    """The rule that prefers what was measured: `(shape, unit) -> algorithms`, for `convs_to_kernels`."""

    def __init__(self, records: Sequence[ConvRecord], target: str) -> None:
        self.by_shape: dict[ConvShape, dict[Algorithm, float]] = {}
        for record in records:
            if record.target == target:
                measured = self.by_shape.setdefault(record.shape, {})
                measured[record.algorithm] = min(record.median, measured.get(record.algorithm, math.inf))

    def __call__(self, shape: ConvShape, unit: VectorUnit) -> list[Algorithm]:
        """The measured ones that beat the rule's first, fastest first; then the rule's."""
        rule = candidates(shape, unit)
        kinds = {str(each) for each in rule}  # a record may be of another version, or written by hand
        measured = {each: seconds for each, seconds in self.by_shape.get(shape, {}).items() if str(each) in kinds}
        bound = (1 - MARGIN) * measured.get(rule[0], 0.0)
        faster = sorted((a for a in measured if measured[a] < bound), key=lambda algorithm: measured[algorithm])
        return [*faster, *rule]
