"""Elementary functions in float32 that a compiler can vectorize: polynomials where a call of the C library would stand.

    exp(x)     = 2^n (1 + r + r^2 p(r))          n = round(x / ln 2),  r = x - n ln 2 in two parts,  |r| < 0.35
    sigmoid(x) = 1 / (1 + exp(-x))               silu(x) = x sigmoid(x)
    tanh(x)    = x p(x^2) / q(x^2)               and 1 where it is that in float32
    erf(x)     = x p(x^2) / q(x^2)               likewise
    gelu(x)    = x / 2 (1 + erf(x / sqrt 2))

The coefficients of exp are those of Cephes (Moshier, 1984); those of tanh and erf the minimax rationals in use since Eigen 3.3.
Relative error below 1e-6 (`tests/lowering/test_elementary.py`); NaN and infinity as they should be. Other dtypes keep TVM's.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
TANH_LIMIT, TANH_ONE = 7.90531110763549805, 9.02  # where the rational ends; where tanh is 1 in float32
TANH = (
    (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
     6.37261928875436e-04, 4.89352455891786e-03),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)  # fmt: skip
ERF_LIMIT, ERF_ONE = 4.0, 3.8325067
ERF = (
    (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
     -2.95459980854025e-03, -1.60960333262415e-02),
    (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02),
)  # fmt: skip


def exp(x: Any) -> Any:
    """e^x; the power of two in two factors, so that it overflows and underflows where it should."""
    if _dtype(x) != "float32":
        return tirx.exp(x)
    return named(x, lambda x: named(_bounded(x, -104.0, 89.0), _exp_bounded))


def _exp_bounded(x: Any) -> Any:
    def product(n: Any, r: Any) -> Any:
        whole = n.astype("int32")
        half = whole >> 1
        return (_horner(EXP, r) * r * r + r + _number(1.0)) * _power_of_two(half) * _power_of_two(whole - half)

    exponent = tirx.floor(x * _number(1 / math.log(2)) + _number(0.5))
    return named(exponent, lambda n: named(x - n * _number(LN2_HIGH) - n * _number(LN2_LOW), lambda r: product(n, r)))


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return _number(1.0, _dtype(x)) / (_number(1.0, _dtype(x)) + exp(-x))


def silu(x: Any) -> Any:
    """x sigmoid(x)."""
    return named(x, lambda x: x * sigmoid(x))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return tirx.tanh(x) if _dtype(x) != "float32" else _odd_rational(x, TANH, TANH_LIMIT, TANH_ONE)


def erf(x: Any) -> Any:
    """The error function."""
    return tirx.erf(x) if _dtype(x) != "float32" else _odd_rational(x, ERF, ERF_LIMIT, ERF_ONE)


def gelu(x: Any) -> Any:
    """x Phi(x), the exact form."""
    half, scale = _number(0.5, _dtype(x)), _number(math.sqrt(0.5), _dtype(x))
    return named(x, lambda x: x * (half + half * erf(x * scale)))


def gelu_tanh(x: Any) -> Any:
    """The same by tanh: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    half, scale, cubic = (_number(value, _dtype(x)) for value in (0.5, math.sqrt(2 / math.pi), 0.044715))
    return named(x, lambda x: x * (half + half * tanh(scale * (x + cubic * x * x * x))))


def nearest(x: Any) -> Any:
    """The integer next to a float32 of less than 2^22, ties to even: the last bits of x + 1.5 2^23, whose unit is 1."""
    magic = 1.5 * 2.0**23
    return tirx.reinterpret("int32", x + _number(magic)) - tirx.const(np.float32(magic).view(np.int32).item(), "int32")


def _odd_rational(x: Any, coefficients: tuple[Sequence[float], Sequence[float]], limit: float, one: float) -> Any:
    def ratio(bounded: Any) -> Any:
        return named(
            bounded * bounded, lambda square: bounded * _horner(coefficients[0], square) / _horner(coefficients[1], square)
        )

    def limited(x: Any) -> Any:
        value = named(_bounded(x, -limit, limit), ratio)
        return tirx.Select(x > _number(one), _number(1.0), tirx.Select(x < _number(-one), _number(-1.0), value))

    return named(x, limited)


def _bounded(x: Any, low: float, high: float) -> Any:
    """`x` between bounds; by comparisons, which NaN passes."""
    return tirx.Select(x > _number(high), _number(high), tirx.Select(x < _number(low), _number(low), x))


def named(value: Any, body: Callable[[Any], Any]) -> Any:
    """`body` of a name for `value`, so that what repeats it repeats the name and not the expression."""
    value = value if hasattr(value, "ty") else value.asobject()
    name = tirx.Var("x", _dtype(value))
    return tirx.Let(name, value, body(name))


def _dtype(x: Any) -> str:
    """Of an expression, or of an element of a tensor, which has no type yet."""
    return str(x.ty.dtype if hasattr(x, "ty") else x.dtype)


def _horner(coefficients: Sequence[float], x: Any) -> Any:
    """The polynomial, the highest power first."""
    total = _number(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + _number(coefficient)
    return total


def _power_of_two(exponent: Any) -> Any:
    return tirx.reinterpret("float32", (exponent + 127) << 23)


def _number(value: float, dtype: str = "float32") -> Any:
    return tirx.const(value, dtype)
