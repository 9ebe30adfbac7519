"""By how much two runs of one function may differ: every number that a result is checked by.

What a pass proves of its own work has a bound beside the proof (`passes/fusion/proof.py`, `probe.py`,
`passes/pruning/slice_channels.py`), and so has the algorithm of a compiled layer (`lowering/conv/accuracy.py`).

All are relative: the largest difference over the largest absolute value that was expected.
"""

from dataclasses import dataclass

from reparam_compiler.vocabulary.dtypes import FLOATING

WHOLE_TOLERANCE = 1e-6
"""A whole model in float64, before and after, with the new weights not yet rounded."""
ROUNDED_TOLERANCE = 1e-4
"""The same with weights that are rounded to float32 already; for coarser dtypes see `rounded`."""
SUSPECT = 1e-5
"""A difference of two float64 runs above which both are run in the model's dtype as well."""
SAME = 1e-3
"""A model and its trace, which run the same ops in the same dtype."""
AGREE = 1e-3
"""A float32 model in ONNX Runtime and its graph in float64; coarser dtypes get `64 eps`."""
COMPUTED_FLOOR = 1e-5
"""`floor`, below, where models run in float32."""
MARGIN = 8
"""A conversion rounds a few times on its way (each branch, their sum), and a measured response to rounding is one sample."""
NUDGES = 3
"""How often a model's weights are moved by their rounding, before a difference is said to be none of rounding's."""
LAYERS = 10
"""How many times the error that one layer may have, `CompileOptions.max_error`, a compiled model may have."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What goes by the coarsest dtype of a model's weights, or of its outputs.

    floor: what rounding does to any model; `equivalent` need not measure a smaller difference.
    ceiling: the largest tolerance of `equivalent`, however much a model amplifies: beyond it rounding is not told from error.
    compiled: a compiled model and the model in its own runtime; it tells rounding from another function.
    """

    floor: float
    ceiling: float
    compiled: float


BY_DTYPE = {
    "f64": Tolerances(1e-9, 1e-6, 1e-3),
    "f32": Tolerances(1e-6, 1e-3, 1e-3),
    "f16": Tolerances(1e-3, 5e-2, 2e-2),
    "bf16": Tolerances(8e-3, 0.2, 0.1),
}
EPS = {word: row.eps for word, row in FLOATING.items()}
"""The distance of 1 and the next number; rounding moves a number by half of it at most."""


def rounded(stored: str) -> float:
    """By how much a model may move in float64 where its new weights are rounded to this dtype.

    >>> rounded("f32"), rounded("f16")
    (0.0001, 0.0625)
    """
    return max(ROUNDED_TOLERANCE, 64 * EPS[stored])


def agreement(stored: str) -> float:
    """By how much ONNX Runtime and a graph in float64 may differ, for weights of this dtype.

    >>> agreement("f32"), agreement("bf16")
    (0.001, 0.5)
    """
    return max(AGREE, 64 * EPS[stored])
