"""How a command line states the shapes of inputs: 'x:[1,3,224,224] mask:[1,10]'.

This module needs neither torch nor numpy: `tvmc run` starts without them.
"""

import re

from reparam_compiler.errors import UnsupportedModelError

_ALONE = re.compile(r"\s*\[(?P<sizes>[^\[\]]*)\]\s*")
_SHAPE = re.compile(r"[\s,]*(?P<name>[^\s\[\],][^\s\[\]]*?)\s*:\s*\[(?P<sizes>[^\[\]]*)\]")


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """The shapes that a text states, by name, in its order.

    Blanks or commas stand between inputs; a name may hold colons and commas; a scalar has no sizes. One shape alone needs no
    name, and is given under "".

    >>> parse_shapes("x:[1,3,224,224]")
    {'x': (1, 3, 224, 224)}
    >>> parse_shapes("in:0:[1, 3] mask:[7],s:[]")
    {'in:0': (1, 3), 'mask': (7,), 's': ()}
    >>> parse_shapes("[1,3,224,224]")
    {'': (1, 3, 224, 224)}

    Raises:
        UnsupportedModelError: the text cannot be read so, or a size is not a whole number from 1.
    """
    if alone := _ALONE.fullmatch(text):
        return {"": _sizes(alone["sizes"], text)}
    shapes: dict[str, tuple[int, ...]] = {}
    position = 0
    while text[position:].strip(" \t\n,"):
        match = _SHAPE.match(text, position)
        if match is None:
            raise UnsupportedModelError(_unreadable(text))
        shapes[match["name"]] = _sizes(match["sizes"], text)
        position = match.end()
    return shapes


def _sizes(listed: str, text: str) -> tuple[int, ...]:
    """The sizes of one input of a text."""
    sizes = [size.strip() for size in listed.split(",")] if listed.strip() else []
    if opened := next((size for size in sizes if size in ("?", "-1") or size.isidentifier()), None):
        raise UnsupportedModelError(
            f"{_unreadable(text)}: the model is run on inputs of these shapes, so give a number for {opened}"
        )
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise UnsupportedModelError(_unreadable(text))
    return tuple(int(size) for size in sizes)


def _unreadable(text: str) -> str:
    return f"cannot read the input shapes {text!r}; expected 'x:[1,3,224,224]', every size at least 1"
