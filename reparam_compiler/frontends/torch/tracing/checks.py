"""A check in a model's code, `assert x.shape[1] == 3` or `if x.shape[1] != 3: raise …`: found in the bytecode of who asks."""

import dis
import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

_BRANCHES = ("JUMP", "FOR_ITER", "SEND", "RETURN", "YIELD", "RERAISE")


@dataclass(frozen=True, slots=True)
class Check:
    """A question of which one answer can only raise.

    answer: the other one. refusal: what a trace says where it does not hold, with the statement that would raise as it is
    written.
    """

    answer: bool
    refusal: str


def check_at(frame: FrameType) -> Check | None:
    """The check that a frame is at, where its code asks for the truth of a value; None where both answers lead on."""
    instructions = [i for i in dis.get_instructions(frame.f_code) if i.opname != "CACHE"]
    place = next(index for index, i in enumerate(instructions) if i.offset == frame.f_lasti)
    if instructions[place].opname == "TO_BOOL":  # Python 3.13 asks before it jumps
        place += 1
    jump = instructions[place]
    if frame.f_code.co_exceptiontable or not jump.opname.endswith(("IF_TRUE", "IF_FALSE")):
        return None  # what is raised may be caught
    target = next((index for index, i in enumerate(instructions) if i.offset == jump.argval), place)
    jumps_where = jump.opname.endswith("IF_TRUE")
    raising = {jumps_where: _raised(instructions[target:]), not jumps_where: _raised(instructions[place + 1 :])}
    for answer in (True, False):
        if (raised := raising[not answer]) is not None and raising[answer] is None:
            return Check(answer, _refusal(frame.f_code, raised))
    return None


def _raised(instructions: Sequence[dis.Instruction]) -> dis.Instruction | None:
    """What raises, where code does so before it branches or ends."""
    for instruction in instructions:
        if instruction.opname in ("RAISE_VARARGS", "LOAD_ASSERTION_ERROR"):
            return instruction
        if any(word in instruction.opname for word in _BRANCHES):
            return None
    return None


def _refusal(code: CodeType, raised: dis.Instruction) -> str:
    """The statement that raises, on one line, and where it stands; where its source is not known, in which function."""
    first, last = (raised.positions.lineno, raised.positions.end_lineno) if raised.positions else (None, None)
    lines = [linecache.getline(code.co_filename, line).strip() for line in range(first or 0, (last or -1) + 1)]
    if not any(lines):
        return f"a check in {code.co_name}() of the traced model does not hold"
    return f"{' '.join(lines)} ({Path(code.co_filename).name}:{first}, {code.co_name}())"
