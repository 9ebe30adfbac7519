"""How a command line states the shapes of inputs: 'x:[1,3,224,224] mask:[1,10]', or 'x:[N,3,H,W]' with open sizes.

This module needs neither torch nor numpy: `tvmc run` starts without them.
"""

import re
from collections.abc import Mapping, Sequence

from reparam_compiler.errors import UnsupportedModelError

_ALONE = re.compile(r"\s*\[(?P<sizes>[^\[\]]*)\]\s*")
_SHAPE = re.compile(r"[\s,]*(?P<name>[^\s\[\],][^\s\[\]]*?)\s*:\s*\[(?P<sizes>[^\[\]]*)\]")


Shape = tuple[int | str, ...]
"""Sizes; a letter or a name stands for one that is open, the same for the same size."""


def parse_shapes(text: str) -> dict[str, Shape]:
    """The shapes that a text states, by name, in its order.

    Blanks or commas stand between inputs; a name may hold colons and commas; a scalar has no sizes. One shape alone needs no
    name, and is given under "".

    >>> parse_shapes("x:[1,3,224,224]")
    {'x': (1, 3, 224, 224)}
    >>> parse_shapes("in:0:[1, 3] mask:[7],s:[]")
    {'in:0': (1, 3), 'mask': (7,), 's': ()}
    >>> parse_shapes("[N,3,H,W]")
    {'': ('N', 3, 'H', 'W')}

    Raises:
        UnsupportedModelError: the text cannot be read so, or a size is neither a whole number from 1 nor a name.
    """
    if alone := _ALONE.fullmatch(text):
        return {"": _sizes(alone["sizes"], text)}
    shapes: dict[str, Shape] = {}
    position = 0
    while text[position:].strip(" \t\n,"):
        match = _SHAPE.match(text, position)
        if match is None:
            raise UnsupportedModelError(f"cannot read the input shapes {text!r}; expected 'x:[1,3,224,224]'")
        shapes[match["name"]] = _sizes(match["sizes"], text)
        position = match.end()
    return shapes


def numbers(shapes: Mapping[str, Sequence[int | str]], why: str) -> dict[str, tuple[int, ...]]:
    """Shapes without open sizes.

    >>> numbers({"x": (1, 3)}, "a compiled function has one size")
    {'x': (1, 3)}

    Raises UnsupportedModelError, with this reason, where one is open.
    """
    if opened := next((size for shape in shapes.values() for size in shape if isinstance(size, str)), None):
        raise UnsupportedModelError(f"found the open size {opened} in {shown(shapes)!r}; {why}: give a number for {opened}")
    return {name: tuple(size for size in shape if isinstance(size, int)) for name, shape in shapes.items()}


def shown(shapes: Mapping[str, Sequence[int | str]]) -> str:
    """Shapes as one types them.

    >>> shown({"x": (1, 3), "mask": ("N",)}), shown({"": (1, 3)})
    ('x:[1,3] mask:[N]', '[1,3]')
    """
    sizes = {name: f"[{','.join(map(str, shape))}]" for name, shape in shapes.items()}
    return " ".join(f"{name}:{listed}" if name else listed for name, listed in sizes.items())


def _sizes(listed: str, text: str) -> Shape:
    """The sizes of one input of a text."""
    sizes = [size.strip() for size in listed.split(",")] if listed.strip() else []
    if not all(size.isidentifier() or (size.isdecimal() and int(size)) for size in sizes):
        raise UnsupportedModelError(
            f"cannot read the input shapes {text!r}; expected 'x:[1,3,224,224]', every size at least 1, or 'x:[N,3,224,224]', "
            "with a letter for an open size"
        )
    return tuple(int(size) if size.isdecimal() else size for size in sizes)
