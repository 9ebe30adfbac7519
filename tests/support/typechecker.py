"""What checks the annotations of arrays while the tests run: beartype, on those hints alone that name a dtype and axes.

Other hints are mypy's: a test that passes a wrong word on purpose must reach the refusal behind it.
"""

from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Any) -> Any:
    """The function, which raises where an array is not what its hint says."""
    arrays = {name: hint for name, hint in function.__annotations__.items() if _names_arrays(hint)}
    function.__annotations__ = arrays
    return beartype(function) if arrays else function


def _names_arrays(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_names_arrays, get_args(hint)))
