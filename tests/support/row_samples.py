"""Arguments with which each row of the vocabulary can be called on a tensor of 4 channels."""

from typing import Any

from reparam_compiler.vocabulary.resolve import ROWS
from reparam_compiler.vocabulary.row import Row
from tests.support.small_models import normal

X = normal(2, 4, 6, 6).abs() % 0.9 + 0.05
Y = normal(2, 4, 6, 6, seed=1).abs() + 0.2
BINARY = {
    *("add", "sub", "rsub", "mul", "div", "floor_divide", "fmod", "remainder", "pow", "maximum", "minimum", "eq", "ne"),
    *("lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"),
}
MOVED = {"pixel_shuffle": (2,), "pixel_unshuffle": (2,)}
NUMBERS = {**MOVED, "clamp": (0.2, 0.7), "leaky_relu": (0.2,), "elu": (0.7,), "celu": (0.7,), "softplus": (2.0, 15.0)}
"""The arguments of functions of elements and moves, where the defaults would hide that they are read."""
SAMPLES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(BINARY, (Y,)),
    **NUMBERS,
    "masked_fill": (Y > 1, 0.5),
    "lerp": (Y, 0.3),
    "addcmul": (Y, Y),
    "addcdiv": (Y, Y),
    "threshold": (0.3, 0.1),
    "clamp_min": (0.3,),
    "clamp_max": (0.3,),
    "view": (2, 4, 36),
    "reshape": (2, 4, 36),
    "flatten": (2,),
    "unflatten": (1, (2, 2)),
    "squeeze": (),
    "unsqueeze": (1,),
    "permute": ((0, 2, 3, 1),),
    "transpose": (1, 2),
    "movedim": (1, 3),
    "moveaxis": (1, 3),
    "swapaxes": (1, 3),
    "swapdims": (1, 3),
    "adjoint": (),
    "select": (2, 1),
    "narrow": (2, 1, 3),
    "unfold": (2, 3, 1),
    "diagonal": (0, 2, 3),
    "tile": ((1, 1, 2, 1),),
    "repeat_interleave": (2, 3),
    "roll": (1, 2),
    "flip": ((2,),),
    "rot90": (1, (2, 3)),
    "channel_shuffle": (2,),
    "tril": (),
    "triu": (),
    "softmax": (1,),
    "log_softmax": (1,),
    "softmin": (1,),
    "cumsum": (2,),
    "cumprod": (2,),
    "normalize": (),
    "glu": (1,),
    "mean": (2,),
    "sum": (2,),
    "amax": (2,),
    "amin": (2,),
    "linalg_vector_norm": (),
    "norm": (),
    "var": (2,),
    "std": (2,),
    "adaptive_avg_pool2d": (3,),
    "avg_pool2d": (2,),
    "max_pool2d": (2,),
    "lp_pool2d": (2.0, 2),
    "matmul": (Y,),
    "contiguous": (),
    "clone": (),
    "detach": (),
    "ravel": (),
    "expand_as": (Y,),
    "reshape_as": (Y,),
    "view_as": (Y,),
    "zeros_like": (),
    "ones_like": (),
    "full_like": (2.0,),
}
NO_TENSOR_ALONE = frozenset({"where", "bitwise_not", "gelu_tanh", "shrink_both"})
"""Rows of a form that take something else than a tensor of numbers, or have no spelling."""


def sample(row: Row) -> tuple[Any, ...] | None:
    """What follows the first argument; None for rows that cannot be called so."""
    if row.name in NO_TENSOR_ALONE or (row.form in ("move", "rearranged") and row.name not in SAMPLES):
        return None
    return SAMPLES.get(row.name, () if row.form in ("pointwise", "elementwise") else None)


CALLABLE = [row for row in ROWS.values() if sample(row) is not None]
"""Rows that can be called on a tensor."""
