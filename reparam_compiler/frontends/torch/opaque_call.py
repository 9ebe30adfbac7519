"""A call that has no rule, as it is run outside its model: for graphs that are evaluated whole, and for what is probed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam_compiler.frontends.torch.arguments import by_own_words
from reparam_compiler.frontends.torch.constant_folding import call
from reparam_compiler.frontends.torch.ops.coupling_models import expanded
from reparam_compiler.ir import ops
from reparam_compiler.vocabulary.resolve import Resolved


@dataclass(frozen=True, slots=True, eq=False)
class OpaqueCall:
    """Runs a call on the values of the inputs of its node.

    node, module: the call, and where its modules live.
    arguments: those that the call had when it was read, by place and by keyword; a model that is written changes them.
    called: what it is. coupling: its coupling model.
    numbers: for each source that is a constant number, the number.
    sources, places: the other sources, and which of the inputs each is.
    copies: whether it gets copies, because it writes into what it is given.
    """

    node: fx.Node
    module: nn.Module
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    called: Resolved
    coupling: ops.Op | None
    numbers: Mapping[fx.Node, Any]
    sources: tuple[fx.Node, ...]
    places: tuple[int, ...]
    copies: bool

    def __call__(self, *values: Any) -> Any:
        """The value."""
        if self.node.op == "call_module" and isinstance(self.coupling, ops.PerChannel):
            return F.prelu(*values)  # with the weight that it is given, not that of the module
        args, kwargs = self._values(values)
        if self.called.is_("view") and (sizes := _sizes(args, kwargs)) is not None:
            return args[0].reshape(sizes)  # a copy before it may be no node of the graph
        if self.called.is_("expand", "broadcast_to") and isinstance(self.coupling, ops.Expand):
            x = args[0] if args else by_own_words(kwargs)["input"]
            return expanded(x, _sizes(args, kwargs) or ())
        return call(self.node, self.module, args, kwargs)

    def _values(self, values: tuple[Any, ...]) -> tuple[Any, Any]:
        own = [values[place] for place in self.places]
        own = [v.clone() if self.copies and isinstance(v, Tensor) else v for v in own]
        value_of = dict(self.numbers) | dict(zip(self.sources, own, strict=True))
        args, kwargs = fx.map_arg(self.arguments, value_of.__getitem__)
        return args, kwargs


def _sizes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Any] | None:
    """The sizes that a call states, in a list, one after the other or by keyword; None for a view as another dtype."""
    rest = args[1:] or (kwargs.get("size", kwargs.get("dtype")),)
    sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    return None if isinstance(sizes[0] if sizes else None, torch.dtype) else sizes
