"""The arguments of an fx node, positional or by keyword, as the model has them.

argument(node, 2, "start")                  8, of `narrow(y, 1, 8, 8)` as of `narrow(y, 1, start=8, length=8)`
argument(node, 1, "dim")                    1, of `cat((x, y), axis=1)`: torch takes numpy's words as well as its own
set_argument(node, 2, "start", value=4)     the same argument, where it stands
"""

from collections.abc import Mapping
from typing import Any

from torch import fx

_WORDS = {
    "axis": "dim",
    "keepdims": "keepdim",
    **dict.fromkeys(("x1", "x", "a", "self", "tensor"), "input"),
    "x2": "other",
}
"""numpy's words, which torch's functions and methods take too, and those of aten, for torch's own."""


def by_own_words(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of torch's, by torch's own names of its parameters: `dim` for `axis`, `input` for `x`."""
    return {_WORDS.get(name, name): value for name, value in kwargs.items()}


def argument(node: fx.Node, place: int, *names: str) -> Any:
    """The argument at a place, or of one of these names; None where it is left out."""
    if place < len(node.args):
        return node.args[place]
    given = by_own_words(node.kwargs)
    return next((given[name] for name in names if name in given), None)


def set_argument(node: fx.Node, place: int, *names: str, value: Any) -> None:
    """Exchanges that argument; one that is left out is added, by its place where that comes next, else under the first name."""
    args, name = node.args, next((name for name in node.kwargs if _WORDS.get(name, name) in names), None)
    if place < len(args) or (place == len(args) and name is None):
        node.args = (*args[:place], value, *args[place + 1 :])
    else:
        node.kwargs = {**node.kwargs, name or names[0]: value}
