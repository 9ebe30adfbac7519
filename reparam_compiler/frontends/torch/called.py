"""What a node of an fx graph calls, by identity, and the numbers and words that it is called with."""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from reparam_compiler.frontends.torch.arguments import by_own_words
from reparam_compiler.frontends.torch.ops.modules import called_module
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.resolve import Resolved, resolve_attribute, resolve_function, resolve_method


def resolve(node: fx.Node, module: nn.Module) -> Resolved:
    """The op that a call is, and whether it writes into its first argument; `inplace=True` counts."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return _in_place(called_module(called), bool(getattr(called, "inplace", False)))
    if node.op == "call_method":
        return resolve_method(str(node.target))
    target: Any = node.target
    if target is getattr:
        return resolve_attribute(str(node.args[1]))
    place = inplace_place(target)
    positional = place is not None and place < len(node.args) and bool(node.args[place])
    return _in_place(resolve_function(target), positional or bool(node.kwargs.get("inplace", False)))


def _in_place(resolved: Resolved, writes: bool) -> Resolved:
    return replace(resolved, writes=True) if writes and not resolved.writes else resolved


def tuple_behind(node: fx.Node) -> fx.Node | None:
    """For the first element of a tuple that is of no other interest, the call that gives the tuple; None for any other node.

    `getitem(native_layer_norm(x, …), 0)` is the layer norm.
    """
    first = node.args[0] if node.target is operator.getitem and node.args[1:] == (0,) else None
    return first if isinstance(first, fx.Node) and is_read_by_its_first(first) else None


def is_read_by_its_first(node: fx.Node) -> bool:
    """True for a call that gives a tuple of which only the first element is of interest, where nothing else is read."""
    if node.op != "call_function" or Facts.GIVES_FIRST not in resolve_function(node.target).facts:
        return False
    return all(user.target is operator.getitem and user.args[1:] == (0,) for user in node.users)


def schema(target: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> Sequence[Any]:
    """The parameters of an operator; none where it has several forms, and which one is called depends on the values."""
    if isinstance(target, torch._ops.OpOverload):
        return tuple(target._schema.arguments)
    forms = target._overload_names
    return tuple(getattr(target, forms[0] or "default")._schema.arguments) if len(forms) == 1 else ()


@cache
def parameter_names(target: Any) -> tuple[str, ...]:
    """What the parameters of a function or an operator are called; none where it does not say."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return tuple(argument.name for argument in schema(target))
    try:
        parameters = inspect.signature(target).parameters.values()
        return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    except (TypeError, ValueError):  # a builtin
        return ()


@cache
def inplace_place(target: Any) -> int | None:
    """Where a function of torch.nn.functional takes `inplace`."""
    names = () if isinstance(target, torch._ops.OpOverload) else parameter_names(target)
    return names.index("inplace") if "inplace" in names else None


def scalar_arguments(node: fx.Node, module: nn.Module, value_of: Callable[[fx.Node], Any]) -> Mapping[str | int, object]:
    """The numbers, words, slices and lists of them that a call is given, by the names of its parameters, or their positions.

    Of a leaf module also those that it holds: its public attributes. value_of: the number that a node stands for, or the node.
    """
    args: Sequence[Any]
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value_of)
    names = parameter_names(node.target) if node.op == "call_function" else ()
    if node.op != "call_module" and not {".", ":"}.intersection(resolve(node, module).name):
        kwargs = by_own_words(kwargs)
    named: dict[str | int, Any] = {names[i] if i < len(names) else i: value for i, value in enumerate(args)}
    if node.op == "call_module":
        held = vars(module.get_submodule(str(node.target)))
        named |= {name: value for name, value in held.items() if not name.startswith("_") and name != "training"}
    return {key: value for key, value in (named | kwargs).items() if _is_scalar(value)}


def _is_scalar(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_scalar(part) for part in value)
    if isinstance(value, slice):
        return all(_is_scalar(bound) for bound in (value.start, value.stop, value.step))
    return isinstance(value, int | float | complex | str | bool | type(None) | type(Ellipsis))
