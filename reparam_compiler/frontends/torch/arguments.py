"""The arguments of an fx node, positional or by keyword, as the model has them.

argument(node, 2, "start")                  8, of `narrow(y, 1, 8, 8)` as of `narrow(y, 1, start=8, length=8)`
set_argument(node, 2, "start", value=4)     the same argument, where it stands
"""

from typing import Any

from torch import fx


def argument(node: fx.Node, place: int, *names: str) -> Any:
    """The argument at a place, or of one of these names; None where it is left out."""
    if place < len(node.args):
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def set_argument(node: fx.Node, place: int, *names: str, value: Any) -> None:
    """Exchanges that argument; one that is left out is added, by its place where that comes next, else under the first name."""
    args, name = node.args, next((name for name in names if name in node.kwargs), None)
    if place < len(args) or (place == len(args) and name is None):
        node.args = (*args[:place], value, *args[place + 1 :])
    else:
        node.kwargs = {**node.kwargs, name or names[0]: value}
