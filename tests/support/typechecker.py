"""What checks the annotations of arrays while the tests run: beartype, on those hints alone that name a dtype and axes.

Other hints are mypy's: a test that passes a wrong word on purpose must reach the refusal behind it. jaxtyping's hook wraps
every function of a module, in three calls each, which costs as much as what the functions do; here those without such a hint
stay bare.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args
from unittest import mock

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

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
        return _jaxtyped(subject, typechecker=typechecker) if any(map(_names_arrays, hints)) else subject

    return decorated


def _names_arrays(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_names_arrays, get_args(hint)))
