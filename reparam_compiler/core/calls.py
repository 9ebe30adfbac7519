"""How a forward() is called by position with some of its arguments: inputs of which only names and shapes are known.

forward(a, b=None, c=None), given {"a"}         a
                            given {"b", "a"}    a, b
                            given {"a", "c"}    refused: c would land in b
"""

import inspect
from collections.abc import Collection, Mapping

from reparam_compiler.errors import UnsupportedModelError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def by_position(parameters: Mapping[str, inspect.Parameter], given: Collection[str]) -> list[str]:
    """The names of the given arguments, in the order of a call by position; as they are given for a forward(*args).

    >>> by_position(inspect.signature(lambda a, b=None, c=None: None).parameters, ["b", "a"])
    ['a', 'b']

    Raises UnsupportedModelError for a name that there is not, one that is passed by keyword only, and one that is left out
    and has no default, or stands before another.
    """
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values()):
        return list(given)
    names = [name for name, parameter in parameters.items() if parameter.kind in _POSITIONAL]
    inputs = f"the inputs are {', '.join(names) or 'none'}"
    if unknown := [name for name in given if name not in names]:
        keywords = [name for name in unknown if name in parameters]
        why = ", which takes it by keyword only: export it with its inputs" if keywords == unknown else ""
        raise UnsupportedModelError(f"{', '.join(unknown)} is no input of the model{why}; {inputs}")
    last = max((index for index, name in enumerate(names) if name in given), default=-1)
    needed = [name for index, name in enumerate(names) if index < last or parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in needed if name not in given]:
        raise UnsupportedModelError(f"no shape for {', '.join(missing)}; {inputs}, in this order")
    return names[: last + 1]
