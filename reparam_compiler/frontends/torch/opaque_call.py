"""A call that has no rule, as it is run outside its model: for graphs that are evaluated whole, and for what is probed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam_compiler.frontends.torch.constant_folding import call
from reparam_compiler.frontends.torch.ops.coupling_models import expanded
from reparam_compiler.ir import ops
from reparam_compiler.vocabulary.resolve import Resolved


@dataclass(frozen=True, slots=True, eq=False)
class OpaqueCall:
    """Runs a call on the values of the inputs of its node.

    node, module: the call, and where its modules live.
    called: what it is. coupling: its coupling model.
    numbers: for each source that is a constant number, the number.
    sources, places: the other sources, and which of the inputs each is.
    copies: whether it gets copies, because it writes into what it is given.
    """

    node: fx.Node
    module: nn.Module
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
        args, kwargs = self._arguments(values)
        if self.called.is_("view") and not isinstance(args[1], torch.dtype):
            return args[0].reshape(*args[1:])  # a copy before it may be no node of the graph
        if self.called.is_("expand") and isinstance(self.coupling, ops.Expand):
            return expanded(args[0], args[1] if isinstance(args[1], list | tuple) else args[1:])
        return call(self.node, self.module, args, kwargs)

    def _arguments(self, values: tuple[Any, ...]) -> tuple[Any, Any]:
        own = [values[place] for place in self.places]
        own = [v.clone() if self.copies and isinstance(v, Tensor) else v for v in own]
        value_of = dict(self.numbers) | dict(zip(self.sources, own, strict=True))
        args, kwargs = fx.map_arg((self.node.args, dict(self.node.kwargs)), value_of.__getitem__)
        return args, kwargs
