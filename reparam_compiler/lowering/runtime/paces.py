"""How long a run of each batch takes on this machine, which decides whether samples are run together.

A batch reads the weights once for all of its samples, and its activations go to memory where those of one sample stay in cache.
Which counts more is the model's: eight images together are 1.5 times as fast for RepVGG-A0, and a fifth slower for MobileNetV2.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from reparam_compiler.lowering.runtime.description import filled
from reparam_compiler.lowering.runtime.variant import Variant

ROUNDS, PATIENCE = 5, 2.0
"""How often each batch is measured, in turn, and the seconds after which no further round begins."""
TOO_SHORT = 1e-3
"""Seconds of a run that tell nothing of a batch: what is launched counts for more than what is computed."""


def with_paces(variants: Sequence[Variant]) -> list[Variant]:
    """The variants of one target with the seconds of a run; as they are where this machine runs none, or there is one only."""
    if len(variants) < 2 or any(variant.machines is None for variant in variants):
        return list(variants)
    inputs = [[filled(spec, "random") for spec in variant.inputs] for variant in variants]
    best, end = [float("inf")] * len(variants), time.monotonic() + PATIENCE
    for _ in range(ROUNDS):
        for place, variant in enumerate(variants):
            best[place] = min(best[place], *variant.measured(inputs[place], 1, 1))
        if time.monotonic() > end:
            break
    if min(best) < TOO_SHORT:
        return list(variants)
    return [replace(variant, seconds=seconds) for variant, seconds in zip(variants, best, strict=True)]
