"""Is a difference that is too large for most models what rounding does to this one?

A model can amplify rounding to any size: a top-k of near ties, a detector that gives as many boxes as it finds. By what it
moves where its own weights are moved by their rounding, a right rewrite may differ from it as well:

    explained    |written - expected| <= 8 |model with moved weights - model|    for one of a few such moves

The model with moved weights is run only where a difference is too large.

A runtime has errors of its own, which need not be small beside an output that is: a sigmoid that is right to 1e-7 of its range
is not right to a thousandth of what it gives far below zero. What is written may be as far from its graph as the model is:

    as_near      |written - its graph| <= 8 |model - its graph|
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reparam_compiler.checking.runners import Outputs, Runner
from reparam_compiler.checking.tolerances import MARGIN, NUDGES
from reparam_compiler.errors import ReparamError
from reparam_compiler.interpreter.difference import EXACT, Difference, difference

logger = logging.getLogger(__name__)
UNEQUAL = Difference(math.inf, math.inf)


def largest_difference(expected: Outputs, found: Outputs) -> Difference:
    """The largest relative difference of outputs, paired in their order; infinite where there is another number of them."""
    if len(expected) != len(found):
        return UNEQUAL
    pairs = zip(expected.values(), found.values(), strict=True)
    return max((difference(a, b) for a, b in pairs), key=lambda apart: apart.relative, default=EXACT)


def explained(
    expected: Outputs,
    found: Outputs,
    runner: Callable[[], Runner],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> bool:
    """Whether rounding the weights of the model moves its outputs by as much as these differ by.

    Where they differ in shape, it must change shapes as well.

    Args:
        expected: what the model gives. found: what was written gives.
        runner: the model, as it ran to give `expected`.
        args, kwargs: what it is called with.
    """
    apart, alike = largest_difference(expected, found), _shapes(expected) == _shapes(found)
    for seed in range(NUDGES):
        try:
            moved = runner().nudged(seed).run(args, kwargs)
        except ReparamError as refusal:
            logger.info("the model with moved weights was not run: %s", refusal)
            return False
        response = largest_difference(expected, moved)
        if apart.relative <= MARGIN * response.relative and (alike or _shapes(moved) != _shapes(expected)):
            logger.info("%.1e apart, but rounding alone moves the model by %.1e", apart.relative, response.relative)
            return True
    return False


def as_near(expected: Outputs, found: Outputs, own_expected: Outputs, own_found: Outputs) -> bool:
    """Whether each output is as near as the model's own is, in absolute numbers.

    Args:
        expected, found: what the graph of what was written gives, and what was written.
        own_expected, own_found: what the graph of the model gives, and the model.
    """
    if not len(expected) == len(found) == len(own_expected) == len(own_found):
        return False
    outputs = zip(expected.values(), found.values(), own_expected.values(), own_found.values(), strict=True)
    return all(difference(a, b).max_abs <= MARGIN * difference(c, d).max_abs < math.inf for a, b, c, d in outputs)


def _shapes(outputs: Outputs) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in outputs.values()]
