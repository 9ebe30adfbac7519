"""How large an input may be that is drawn, for a proof or for a check.

is_drawn((1, 3, 224, 224))     True
"""

from collections.abc import Sequence
from math import prod

LARGEST = 2**28
"""Elements: two GiB in float64."""


def is_drawn(shape: Sequence[int]) -> bool:
    """Whether an input of this shape is small enough to be drawn."""
    return prod(shape) <= LARGEST
