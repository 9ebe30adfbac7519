"""Whether a module may be changed in place, though its trace does not show all that its code does.

A trace shows what `forward(x, mask=None)` does without a mask. The module keeps its code, and what that does with one:
then a layer must be read by nothing but the norm that went into it, and a part that became a GraphModule be called as it was.
Nor does it show what the code does where the module trains: an auxiliary head would read what was cut with its old width.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx, nn

from reparam_compiler.core.names import prefixes
from reparam_compiler.errors import first_line
from reparam_compiler.frontends.torch.fx import Call
from reparam_compiler.frontends.torch.module_state import attributes_kept, buffers_kept
from reparam_compiler.frontends.torch.placing.carving import NotPlacedError
from reparam_compiler.frontends.torch.tracing.attributes import called_by_methods
from reparam_compiler.frontends.torch.tracing.calls import Trace, arguments_of, is_identity, named, resolved
from reparam_compiler.frontends.torch.tracing.tracer import symbolic_trace


@dataclass(frozen=True, slots=True)
class OtherCalls:
    """What must hold where a fixed argument is given, and where the module trains.

    trace: of the module, which is still as it was. cut: whether layers lost channels. unread: parameters that it does not show.
    chains: the paths of layers and parts that one new layer stands for, each read by the next alone.
    parts: the paths of those that become GraphModules.
    """

    trace: Trace
    chains: Sequence[Sequence[str]]
    parts: Sequence[str]
    cut: bool
    unread: Sequence[str]

    def check(self) -> None:
        """Raises NotPlacedError, with the argument or the method, where it does not hold or that cannot be told."""
        for chain in self.chains:
            self._check_methods(chain)
        usual = _layers(self._traced(self.trace.fixed)) if self.cut and self.trace.fixed else set()
        for name in self.trace.fixed:
            given = self._traced_with(name)
            self._check_chains(given, name)
            self._check_parts(given, name)
            if self.cut and _layers(given) - set(self.parts) != usual - set(self.parts):
                raise NotPlacedError(f"with {name} given it calls other layers")
        if self.cut and self.unread:
            self._check_training()

    def _check_training(self) -> None:
        """Where it trains it reads no parameter that the trace does not show."""
        module = self.trace.module
        with attributes_kept(module):
            module.train()
            try:
                read = called_paths(self._traced(self.trace.fixed).graph.nodes)
            except Exception as error:  # the model's own code runs
                why = f"what it does with {self.unread[0]} where it trains cannot be traced ({first_line(error)})"
                raise NotPlacedError(why) from error
            unread = parameters_without(module, read)
        found = next((name for name in self.unread if name not in unread), None)
        if found is not None:
            raise NotPlacedError(f"where it trains it reads {found}, for values whose channels may have been cut")

    def _check_methods(self, chain: Sequence[str]) -> None:
        """No other method of a module calls a layer without the norm that went into it."""
        parents = {path.rpartition(".")[0] for path in chain}
        if len(parents) != 1 or len(chain) < 2:
            return
        kind: Any = type(self.trace.module.get_submodule(parents.pop()))
        layers = {path.rpartition(".")[2] for path in chain}
        for name, called in called_by_methods(kind).items():
            if not layers.isdisjoint(called) and not layers <= called:
                left = ", ".join(sorted(layers - called))
                raise NotPlacedError(f"its method {name}() calls {', '.join(sorted(layers & called))} without {left}")

    def _traced_with(self, name: str) -> fx.GraphModule:
        """The module with an argument given: any value, else what a flag is given."""
        error: Exception | None = None
        for given in ({}, {name: self.trace.fixed[name] is not True}):
            try:
                return self._traced({key: value for key, value in self.trace.fixed.items() if key != name} | given)
            except Exception as raised:  # noqa: BLE001 - the model's own code runs
                error = raised
        why = first_line(error) if error is not None else ""
        raise NotPlacedError(f"what it does with {name} given cannot be traced ({why})")

    def _traced(self, fixed: Mapping[str, Any]) -> fx.GraphModule:
        with attributes_kept(self.trace.module), buffers_kept(self.trace.module):
            return symbolic_trace(self.trace.module, fixed, leaves=frozenset(self.parts)).graph_module

    def _check_chains(self, given: fx.GraphModule, name: str) -> None:
        after = {path: behind for chain in self.chains for path, behind in pairwise(chain)}
        before = {behind: path for path, behind in after.items()}
        for node in given.graph.find_nodes(op="call_module"):
            path = str(node.target)
            if path in after and {str(reader.target) for reader in _readers(node, given)} != {after[path]}:
                raise NotPlacedError(f"with {name} given {path} is read by others than {after[path]}")
            if path in before and str(_source(node, given).target) != before[path]:
                raise NotPlacedError(f"with {name} given {path} reads something else than {before[path]}")

    def _check_parts(self, given: fx.GraphModule, name: str) -> None:
        known = {path: [_form(call.arguments) for call in self.trace.calls if call.path == path] for path in self.parts}
        names = {node: node.name for node in given.graph.nodes}
        for node in given.graph.find_nodes(op="call_module"):
            path = str(node.target)
            if path in known:
                part = self.trace.module.get_submodule(path)
                form = _form(arguments_of(part, named(node.args, names), named(dict(node.kwargs), names)))
                if form not in known[path]:
                    raise NotPlacedError(f"with {name} given {path} is called with other arguments")


def _layers(traced: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in traced.graph.find_nodes(op="call_module")}


def called_paths(nodes: Iterable[Call | fx.Node]) -> set[str]:
    """The paths of the layers and tensors that nodes name."""
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}


def parameters_without(module: nn.Module, read: Set[str]) -> list[str]:
    """The names of the parameters that are at none of these paths, and below none.

    By path: a layer that is not called may read with its old width what it shares with one that is.
    """
    return [name for name, _ in module.named_parameters() if read.isdisjoint(prefixes(name))]


def _form(arguments: Any) -> Any:
    """What a call is given, with a word for each value that is computed."""
    return resolved(dict(arguments), lambda _: "a value")


def _readers(node: fx.Node, model: fx.GraphModule) -> list[fx.Node]:
    return [r for user in node.users for r in (_readers(user, model) if is_identity(user, model) else [user])]


def _source(node: fx.Node, model: fx.GraphModule) -> fx.Node:
    source = node.all_input_nodes[0]
    return _source(source, model) if is_identity(source, model) else source
