"""Inputs of which only names are known are brought into the order of a call, or refused: none lands in another's place."""

import inspect
from typing import Any

import pytest

from reparam_compiler.core.calls import by_position
from reparam_compiler.errors import UnsupportedModelError


def optional(a: Any, b: Any = None, c: Any = None) -> None: ...
def keyword(a: Any, *, scale: Any = None) -> None: ...
def several(*args: Any) -> None: ...
def none() -> None: ...


@pytest.mark.parametrize(
    ("forward", "given", "expected"),
    [
        (optional, ["a"], ["a"]),
        (optional, ["b", "a"], ["a", "b"]),
        (optional, ["c", "b", "a"], ["a", "b", "c"]),
        (keyword, ["a"], ["a"]),
        (several, ["y", "x"], ["y", "x"]),
        (none, [], []),
    ],
)
def test_names_come_in_the_order_of_the_call(forward: Any, given: list[str], expected: list[str]) -> None:
    assert by_position(inspect.signature(forward).parameters, given) == expected


@pytest.mark.parametrize(
    ("forward", "given", "said"),
    [
        (optional, ["a", "c"], "no shape for b; the inputs are a, b, c, in this order"),
        (optional, ["b"], "no shape for a"),
        (optional, ["a", "z"], "z is no input of the model; the inputs are a, b, c"),
        (keyword, ["a", "scale"], "scale is no input of the model, which takes it by keyword only: .*; the inputs are a$"),
        (none, ["x"], "x is no input of the model; the inputs are none"),
    ],
)
def test_what_would_land_elsewhere_is_refused_by_name(forward: Any, given: list[str], said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        by_position(inspect.signature(forward).parameters, given)
