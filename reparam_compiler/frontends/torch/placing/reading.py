"""A plain module that was traced: read through its trace, and written as a module of its own class wherever that can be.

Else the trace is what is written: a GraphModule, whose `meta["remarks"]` say why.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from reparam_compiler.errors import first_line
from reparam_compiler.frontends.torch.fx import FxFrontend, FxReading, WrittenTrace
from reparam_compiler.frontends.torch.hooks import copy_hooks
from reparam_compiler.frontends.torch.module_state import attributes_kept, exchange
from reparam_compiler.frontends.torch.placing.carving import NotPlacedError, in_its_stead
from reparam_compiler.frontends.torch.placing.placement import Placement
from reparam_compiler.frontends.torch.placing.same_trace import apart
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.frontends.torch.tracing.attributes import copy_attributes
from reparam_compiler.frontends.torch.tracing.calls import Trace
from reparam_compiler.frontends.torch.tracing.shared_weights import make_own
from reparam_compiler.frontends.torch.tracing.tracer import symbolic_trace
from reparam_compiler.ir.graph import Graph

logger = logging.getLogger(__name__)


class ModuleFrontend:
    """Reads and writes a module that was traced."""

    name = "nn.Module"

    def read(self, trace: Trace, example_inputs: Sequence[Any] | None = None) -> "ModuleReading":
        """The graph of a trace; raises UnsupportedModelError as `FxFrontend` does."""
        return ModuleReading(trace, FxFrontend().read(trace.graph_module, example_inputs))


@dataclass(frozen=True, slots=True)
class ModuleReading:
    """A traced module that has been read."""

    trace: Trace
    through: FxReading

    @property
    def graph(self) -> Graph:
        """The graph of the trace."""
        return self.through.graph

    def write(self, after: Graph, *, inplace: bool = False, exact: bool = False) -> nn.Module:
        """The module that computes `after`; with `exact` its trace in float64, the new weights not rounded."""
        if exact:
            return self.through.write(after, exact=True)
        written = self._written(after, inplace=inplace)
        make_own(written, self.trace.shared)
        return written

    def _written(self, after: Graph, *, inplace: bool) -> nn.Module:
        """As `write`; what stays may be shared with the caller's module, as it is in the trace."""
        module, trace = self.trace.module, self.trace.graph_module
        if not inplace:
            memo: dict[int, Any] = {}
            trace = self.through.copied(after, memo)
            module = deep_copy(module, memo)
        written = self.through.written(after, trace, keep_calls=True)
        try:
            exchanged = exchange(module, Placement(self.trace, written).plan(module))
            try:
                self._check(module, written)
            except BaseException:
                exchanged.undo()
                raise
        except NotPlacedError as refusal:
            copy_hooks(module, written.model)
            copy_attributes(module, written.model)
            return in_its_stead(module, written.model, refusal)
        return module

    def _check(self, module: nn.Module, written: WrittenTrace) -> None:
        """Raises NotPlacedError where the module, traced anew, is not the written trace."""
        if not written.changes:
            return
        try:
            with attributes_kept(module):
                found = symbolic_trace(module, self.trace.fixed).graph_module
            other = apart(written, found)
        except Exception as error:
            logger.info("%s, put together anew, cannot be traced: %s", type(module).__name__, error)
            raise NotPlacedError(f"put together anew it cannot be traced ({first_line(error)})") from error
        if other is not None:
            raise NotPlacedError(f"its code would compute {other}")
