"""Forwards that assert something of their input, here because pytest rewrites the assertions of a test's own file."""

from typing import Any

from torch import Tensor


def asserts(m: Any, x: Tensor) -> Tensor:
    """What a trace can check as well: it decides over an AssertionError alone."""
    assert x.shape[1] == m.channels, "channels"
    assert x.dim() == 4 and x.shape[1] == m.channels  # noqa: PT018 - the bytecode of `and` is of interest
    return x * 2


def asserts_the_contrary(m: Any, x: Tensor) -> Tensor:
    """A negation turns the jump round."""
    assert not x.shape[1] == 3  # noqa: SIM201
    return x


def asserts_one_of_two(m: Any, x: Tensor) -> Tensor:
    """The first answer decides whether the second is asked for."""
    assert x.shape[1] == 3 or x.shape[2] == 3
    return x
