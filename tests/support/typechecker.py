"""What checks the annotations of arrays while the tests run: beartype, on those hints alone that name a dtype and axes.

Other hints are mypy's: a test that passes a wrong word on purpose must reach the refusal behind it. jaxtyping's hook wraps
every function of a module, in three calls each, which costs as much as what the functions do; here those without such a hint
stay bare, and one that is called thousands of times is checked at its first calls and at some of those that follow.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, get_args
from unittest import mock

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

FIRST, EVERY = 100, 16
"""So many calls of a function are checked in each process, and then one in so many."""
_jaxtyped = jaxtyping.jaxtyped


def install(rooms: Sequence[str]) -> None:
    """Modules of these packages that are imported from now on are checked."""
    mock.patch.object(jaxtyping, "jaxtyped", _where_arrays_are_named).start()
    jaxtyping.install_import_hook(rooms, f"{__name__}.checked")


def checked(function: Any) -> Any:
    """The function, which raises where an array is not what its hint says."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _names_arrays(hint)}
    return beartype(function)


def _where_arrays_are_named(*, typechecker: Any) -> Callable[[Any], Any]:
    """What the hook decorates functions and classes with."""

    def decorated(subject: Any) -> Any:
        hints = [field.type for field in dataclasses.fields(subject)] if dataclasses.is_dataclass(subject) else []
        if not isinstance(subject, type):
            hints = list(subject.__annotations__.values())
        if not any(map(_names_arrays, hints)):
            return subject
        strict = _jaxtyped(subject, typechecker=typechecker)
        return strict if isinstance(subject, type) else _at_times(strict, subject)

    return decorated


def _at_times(strict: Callable[..., Any], bare: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is checked at some of its calls."""
    calls = itertools.count()

    @functools.wraps(strict)
    def function(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        return (bare if call >= FIRST and call % EVERY else strict)(*args, **kwargs)

    return function


def _names_arrays(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_names_arrays, get_args(hint)))
