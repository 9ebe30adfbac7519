"""Dataclasses of what JSON has of their fields: each value is of the type that the class says, or there is no object."""

import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def of_fields(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """The object; lists become tuples. Raises TypeError where a field is missing, is unknown or has a value of another type.

    >>> from reparam_compiler.lowering.conv.algorithms import Step
    >>> of_fields(Step, {"op": "add", "operand": "scalar", "value": 2})
    Step(op='add', operand='scalar', swapped=False, value=2, source=None, other=0, dtype='')
    >>> of_fields(Step, {"op": ["add"]})
    Traceback (most recent call last):
    TypeError: Step: op is ('add',), expected <class 'str'>
    """
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, hint in _hints(kind).items():  # type: ignore[arg-type]
        if name in found and not _is_of(found[name], hint):
            raise TypeError(f"{kind.__name__}: {name} is {found[name]!r:.80}, expected {hint}")
    return kind(**found)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_of(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        return any(_is_of(value, each) for each in arguments)
    if origin is tuple and isinstance(value, tuple):
        hints = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(hints) == len(value) and all(map(_is_of, value, hints))
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, origin or hint)
