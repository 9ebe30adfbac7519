"""The words of `tvmc` options as values; what cannot be read is an error of argparse."""

import argparse

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.models.shapes import numbers, parse_shapes

ONE_SIZE = "TVM compiles for one size"
MICRO = "microTVM left TVM in 0.20"


def shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    try:
        return numbers(parse_shapes(text), ONE_SIZE)
    except UnsupportedModelError as refusal:
        raise argparse.ArgumentTypeError(str(refusal)) from refusal


def output_format(text: str) -> str:
    """The format of an artifact."""
    if text == "mlf":
        raise argparse.ArgumentTypeError(f"mlf, the Model Library Format, is gone: {MICRO}. Write tar or so")
    if text not in ("tar", "so"):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected tar or so")
    return text


def names(text: str) -> tuple[str, ...]:
    """Names, by comma."""
    return tuple(name.strip() for name in text.strip("[]").split(",") if name.strip())


def sizes(text: str) -> tuple[int, ...]:
    """Whole numbers from 1, by comma."""
    return tuple(map(positive, names(text)))


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected seconds, above 0")
    return found


def port_number(text: str) -> int:
    """The number of a port; 0 is any that is free."""
    if not text.isdecimal() or int(text) >= 1 << 16:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a port, 0 to 65535")
    return int(text)
