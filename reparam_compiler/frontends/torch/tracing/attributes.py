"""What the code of a model reads of its children, other than to call them.

A child that was traced and fused is another module: it has the plain attributes of the old one, but not its methods and
properties, and perhaps not its layers. So a parent that reads `self.block.conv.weight`, `stage.out_channels` (a property),
`self.blocks[2]` or `len(self.blocks)` must keep that child as it was. The bytecode of `forward`, and of
all that it calls by name (methods of its class, functions of its module), says which attributes are read.

A name counts whatever object it is read from. So a child may be kept without need; then its parts are fused one by one.
"""

import dis
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, fx, nn

_LOOKUPS = frozenset({"getattr", "hasattr", "attrgetter", "methodcaller"})
_WALKS = frozenset({"children", "named_children", "modules", "named_modules", "_modules", "get_submodule", "__dict__"})
"""Attributes that give a module's children without their names."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What the code of a class reads.

    own: attributes of `self` that are read other than to call them: kept, indexed, measured, iterated over.
    others: attributes of anything else, and names that are looked up by string.
    unnamed: whether the code reaches children without their names.
    """

    own: frozenset[str]
    others: frozenset[str]
    unnamed: bool


@cache
def reads_of(kind: type) -> Reads:
    """What the `forward` of a class reads, and the methods and functions that it calls."""
    own: set[str] = set()
    others: set[str] = set()
    named: set[str] = set()
    done: set[CodeType] = set()
    waiting = [(method, _first_argument(method)) for method in _functions(kind, ["forward"])]
    while waiting:
        function, owner = waiting.pop()
        for code in _nested(function.__code__):
            if code in done:
                continue
            done.add(code)
            names = set(code.co_names)
            named |= names
            read_own, read_others = _attributes(code, owner)
            own |= read_own
            others |= read_others
            if names & _LOOKUPS:
                others |= {text for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
            waiting += [(method, _first_argument(method)) for method in _functions(kind, names)]
            called = (function.__globals__.get(name) for name in names)
            waiting += [(f, "") for f in called if isinstance(f, FunctionType) and not f.__module__.startswith("torch")]
    return Reads(frozenset(own), frozenset(others), bool(named & (_LOOKUPS | _WALKS)))


def _first_argument(method: FunctionType) -> str:
    """What a method calls its object: `self`, as a rule."""
    return method.__code__.co_varnames[0] if method.__code__.co_argcount else ""


def _reads(module: nn.Module) -> Reads:
    kind: Any = type(module)  # a class is hashable, whatever mypy makes of nn.Module's own __hash__
    return reads_of(kind)


def only_calls(ancestors: Sequence[nn.Module], name: str) -> bool:
    """Whether the code round a child does nothing with it but call it.

    Args:
        ancestors: what holds the child, its parent last. A container hands its children round: it answers False.
        name: that of the child in its parent.
    """
    if isinstance(ancestors[-1], nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return False
    parent, above = _reads(ancestors[-1]), map(_reads, ancestors)
    return name not in parent.own and not parent.unnamed and not any(name in reads.others for reads in above)


def reached_into(ancestors: Iterable[nn.Module], child: nn.Module) -> str | None:
    """A method of a child, or a module in it, that the code round it reads by name; None where there is none."""
    read = {name for ancestor in ancestors for name in _reads(ancestor).others} - set(dir(nn.Sequential))
    inside = {name.rpartition(".")[2] for name, _ in child.named_modules()}
    own = [base for base in type(child).__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins")]
    methods = {name for base in own for name, value in vars(base).items() if callable(value) or hasattr(value, "__get__")}
    return next(iter(sorted(read & (inside | methods) - {"forward"})), None)


def missing(ancestors: Iterable[nn.Module], child: nn.Module, fused: nn.Module) -> str | None:
    """An attribute that the code round a child reads, and that the fused child would not have; None where there is none."""
    read = {name for ancestor in ancestors for name in _reads(ancestor).others}
    of_containers = set(dir(nn.Sequential))  # its `append` is that of some list: nothing is appended to layers in a forward
    return next((name for name in sorted(read - of_containers) if hasattr(child, name) and not _same(child, fused, name)), None)


def _same(child: nn.Module, fused: nn.Module, name: str) -> bool:
    before: Any = getattr(child, name)
    after: Any = getattr(fused, name, None)
    if isinstance(before, nn.Module):
        return type(before) is type(after) and not list(before.children())
    if isinstance(before, Tensor):
        return isinstance(after, Tensor) and after.shape == before.shape
    return hasattr(fused, name) and name in plain_attributes(child)


def called_by_methods(kind: type) -> dict[str, frozenset[str]]:
    """For each public method of a class, of its own code, the attributes of `self` that it calls; `forward` is left out."""
    own = [base for base in reversed(kind.__mro__) if base.__module__.partition(".")[0] not in ("torch", "builtins")]
    methods = {name: member for base in own for name, member in vars(base).items() if isinstance(member, FunctionType)}
    return {
        name: frozenset(called for code in _nested(method.__code__) for called in _called(code))
        for name, method in methods.items()
        if name != "forward" and not name.startswith("_")
    }


def plain_attributes(module: nn.Module) -> dict[str, object]:
    """The attributes of a module and its class that are no methods, properties, children or tensors."""
    theirs = {
        name: value
        for base in reversed(type(module).__mro__)
        if base.__module__.partition(".")[0] not in ("torch", "builtins")
        for name, value in vars(base).items()
        if not callable(value) and not hasattr(value, "__get__")
    }
    return {name: value for name, value in (theirs | vars(module)).items() if not name.startswith("_")}


def copy_attributes(module: nn.Module, to: fx.GraphModule) -> None:
    """Gives a GraphModule the plain attributes of what it stands for; its copies have them too."""
    plain = {name: value for name, value in plain_attributes(module).items() if not hasattr(to, name)}
    for name, value in plain.items():
        setattr(to, name, value)
    to.meta.setdefault("_user_preserved_attributes", {}).update(plain)  # GraphModule's own copies keep these alone


def _functions(kind: type, names: Iterable[str]) -> Iterator[FunctionType]:
    """The methods and properties of these names that a class has from its own code, not from torch's."""
    for name in names:
        for base in kind.__mro__:
            member = vars(base).get(name)
            if base.__module__.partition(".")[0] == "torch":
                continue
            for function in (member, *(getattr(member, part, None) for part in ("fget", "__func__", "__wrapped__"))):
                if isinstance(function, FunctionType):
                    yield function


def _nested(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _attributes(code: CodeType, owner: str) -> tuple[set[str], set[str]]:
    """The attributes that are read of `owner` other than to call them, and all that are read of anything else."""
    own: set[str] = set()
    others: set[str] = set()
    before: dis.Instruction | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            of_self = before is not None and before.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and before.argval == owner
            if not of_self:
                others.add(instruction.argval)
            elif not _calls(instruction):
                own.add(instruction.argval)
        before = instruction
    return own, others


def _called(code: CodeType) -> Iterator[str]:
    """The attributes of `self` that a code calls."""
    for before, instruction in pairwise(dis.get_instructions(code)):
        of_self = before.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and before.argval == "self"
        if of_self and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and _calls(instruction):
            yield instruction.argval


def _calls(instruction: dis.Instruction) -> bool:
    """Whether an attribute is loaded to be called: `LOAD_METHOD`, since Python 3.12 a bit of `LOAD_ATTR`."""
    return instruction.opname == "LOAD_METHOD" or (HAS_METHOD_BIT and bool((instruction.arg or 0) & 1))


HAS_METHOD_BIT = "LOAD_METHOD" not in dis.opmap or dis.opmap["LOAD_METHOD"] >= 256
