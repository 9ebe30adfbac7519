"""How a command line states the shapes of inputs: 'x:[1,3,224,224] mask:[1,10]'.

This module needs neither torch nor numpy: `tvmc run` starts without them.
"""

import re

from reparam_compiler.errors import UnsupportedModelError

_SHAPE = re.compile(r"[\s,]*(?P<name>[^\s\[\],][^\s\[\]]*?)\s*:\s*\[(?P<sizes>[^\[\]]*)\]")


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """The shapes that a text states, by name, in its order.

    Blanks or commas stand between inputs; a name may hold colons and commas; a scalar has no sizes.

    >>> parse_shapes("x:[1,3,224,224]")
    {'x': (1, 3, 224, 224)}
    >>> parse_shapes("in:0:[1, 3] mask:[7],s:[]")
    {'in:0': (1, 3), 'mask': (7,), 's': ()}

    Raises:
        UnsupportedModelError: the text cannot be read so, or a size is not a whole number from 1.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    position = 0
    while text[position:].strip(" \t\n,"):
        match = _SHAPE.match(text, position)
        sizes = [size.strip() for size in match["sizes"].split(",")] if match else []
        if sizes == [""]:
            sizes = []
        if match is None or not all(size.isdecimal() and int(size) for size in sizes):
            raise UnsupportedModelError(
                f"cannot read the input shapes {text!r}; expected 'x:[1,3,224,224]', every size at least 1"
            )
        shapes[match["name"]] = tuple(int(size) for size in sizes)
        position = match.end()
    return shapes
