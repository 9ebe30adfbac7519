"""What a tracer notes of the modules that it walks through: which call made which node, what it was given, and what it gave.

A traced graph is flat. With these notes a part of it can be put back where it came from (`placing/`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.node import map_aggregate

from reparam_compiler.frontends.torch.hooks import signature_of


@dataclass(frozen=True, slots=True)
class Ref:
    """A node of the trace, by its name."""

    name: str


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One call of a module that is no leaf.

    path: of the module. caller: the call whose code made this one; None for the model's own. arguments: what it was given, by
    the names of its `forward`, and result: what it gave, with a `Ref` for each traced value.
    """

    path: str
    caller: "ModuleCall | None"
    arguments: Mapping[str, Any]
    result: Any = None

    def within(self, path: str) -> bool:
        """Whether it is a call of the module at a path, or of one in that."""
        return is_within(self.path, path)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A traced module.

    graph_module: the trace, which shares the layers and the tensors of the module. module: what was traced.
    owners: for each node, by its name, the call whose code made it; None for the model's own.
    calls: in the order of their ends. fixed: the arguments that were fixed while tracing, with their values.
    apart: modules that stay calls though they have parts of their own, and why.
    shared: the parameters, by `id`, whose elements are the caller's: what is given away must have its own (`shared_weights`).
    """

    graph_module: fx.GraphModule
    module: nn.Module
    owners: Mapping[str, ModuleCall | None]
    calls: Sequence[ModuleCall]
    fixed: Mapping[str, Any]
    apart: Mapping[str, str]
    shared: frozenset[int] = frozenset()


def is_within(path: str, outer: str) -> bool:
    """Whether a path is another one, or below it.

    >>> is_within("stage1.0.conv", "stage1.0"), is_within("stage10", "stage1")
    (True, False)
    """
    return path == outer or outer == "" or path.startswith(f"{outer}.")


def is_identity(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node calls an nn.Identity."""
    return node.op == "call_module" and type(model.get_submodule(str(node.target))) is nn.Identity


def arguments_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, by the names of `forward`; none where it does not take them."""
    try:
        return dict(signature_of(module).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # the call itself raises
        return {}


def refs(value: Any) -> Any:
    """A value with a `Ref` in place of each traced one."""
    return _mapped(value, lambda found: Ref(found.node.name) if isinstance(found, fx.Proxy) else found)


def named(value: Any, names: Mapping[fx.Node, str]) -> Any:
    """A value with a `Ref` in place of each node."""
    return _mapped(value, lambda found: Ref(names[found]) if isinstance(found, fx.Node) else found)


def resolved(value: Any, node_of: Callable[[str], Any]) -> Any:
    """A value with what `node_of` gives in place of each `Ref`."""
    return _mapped(value, lambda found: node_of(found.name) if isinstance(found, Ref) else found)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    return map_aggregate(value, change)
