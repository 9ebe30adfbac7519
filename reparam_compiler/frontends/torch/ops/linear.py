"""Every spelling of a linear layer: `F.linear`, `x @ W`, `torch.mm`, `addmm`.

linear(x, W, b) = x W^T + b            W `O I`
x @ W = linear(x, W^T)                 W `I O`
addmm(b, x, W) = linear(x, alpha W^T, beta b)
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from reparam_compiler.frontends.torch.call import Call, Read, Reader, Unsupported
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param


def _linear(call: Call) -> Read:
    weight = call.param(1, "weight", "weight")
    if weight is None or len(weight.shape) != 2:
        raise Unsupported("linear without a matrix")
    return ops.Linear(), (call.x, weight, call.param(2, "bias", "bias", None))


def _matmul(call: Call) -> Read:
    key = "mat2" if call.name == "mm" else "other"
    return ops.Linear(), (call.x, _transposed(call.param(1, key, "weight"), 1.0), None)


def _addmm(call: Call) -> Read:
    alpha, beta = (_number(call, key) for key in ("alpha", "beta"))
    x = call.operand(1, "mat1")
    weight = _transposed(call.param(2, "mat2", "weight"), alpha)
    bias = call.param(0, "input", "bias")
    if not isinstance(x, str) or bias is None:
        raise Unsupported("addmm of a constant")
    return ops.Linear(), (x, weight, _vector(bias, weight.shape[0], beta))


def _number(call: Call, key: str) -> float:
    value = call.kwargs.get(key, 1.0)
    if not isinstance(value, int | float):
        raise Unsupported(f"{call.name}: {key} is computed")
    return float(value)


def _transposed(matrix: Param | None, scale: float) -> Param:
    if matrix is None or len(matrix.shape) != 2:
        raise Unsupported("a product with other things than a matrix")
    return _computed(matrix, (matrix.shape[1], matrix.shape[0]), lambda array: np.ascontiguousarray(array.T), scale)


def _vector(bias: Param, width: int, scale: float) -> Param:
    """What is added, as a vector; torch broadcasts it."""
    if bias.shape == (width,) and scale == 1:
        return bias
    if bias.shape not in ((width,), (1, width), (1,), (1, 1), ()):
        raise Unsupported(f"{bias.shape} added to a product")
    return _computed(bias, (width,), lambda array: np.broadcast_to(array.reshape(-1), (width,)), scale)


def _computed(param: Param, shape: tuple[int, ...], how: Callable[[np.ndarray], np.ndarray], scale: float) -> Param:
    """A parameter that is another one in another form, when it is asked for."""

    def load() -> np.ndarray:
        return how(np.asarray(param.load())) if scale == 1 else how(param.float64()) * scale

    return replace(param, shape=shape, load=load, origin=None)


LINEARS: dict[str, Reader] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm"), _matmul),
    "addmm": _addmm,
}
"""For each row its reader."""
