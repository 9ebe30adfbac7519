"""What to do, in the words of where the caller is: who types a command is told a flag, who calls a function an argument."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_AT_COMMAND_LINE = ContextVar("_AT_COMMAND_LINE", default=False)


@contextlib.contextmanager
def at_command_line() -> Iterator[None]:
    """What is advised meanwhile is advised to who types commands."""
    token = _AT_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _AT_COMMAND_LINE.reset(token)


def in_words_of(*, python: str, command: str) -> str:
    """The one of two wordings that fits where the caller is."""
    return command if _AT_COMMAND_LINE.get() else python


def option(name: str, value: object) -> str:
    """An argument of the public functions, as the caller writes it.

    >>> option("round_to", 1), option("verify", False)
    ('round_to=1', 'verify=False')
    >>> with at_command_line():
    ...     option("round_to", 1), option("verify", False), option("weights_are_constant", True)
    ('--round-to 1', '--no-verify', '--weights-are-constant')
    """
    flag = name.replace("_", "-")
    typed = {True: f"--{flag}", False: f"--no-{flag}"}[value] if isinstance(value, bool) else f"--{flag} {value}"
    return in_words_of(python=f"{name}={value!r}", command=typed)


def ask_for_inputs() -> str:
    """What to do where the shapes of the inputs are not known."""
    return in_words_of(python="pass example_inputs", command="give --input-shapes 'x:[1,3,224,224]'")


def for_inputs_of_several() -> str:
    """What to do for a model whose arguments are no tensors, but hold some, where calibration data alone is given."""
    return in_words_of(
        python="give example_inputs for a model that takes lists, mappings or objects",
        command="a model that takes lists, mappings or objects is pruned in Python, with example_inputs",
    )
