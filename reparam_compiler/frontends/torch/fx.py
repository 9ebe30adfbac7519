"""torch.fx.GraphModule in, GraphModule out.

The result is an ordinary GraphModule: a deep copy of the caller's, in which every new conv is an `nn.Conv2d` (`Conv1d`,
`Conv3d`, `Linear`) under the name of what it replaces, and pruned tensors stand in the modules that had them before.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.func import functional_call

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import UnsupportedModelError, first_line
from reparam_compiler.frontends.torch.graph_module_writer import GraphModuleWriter, attribute
from reparam_compiler.frontends.torch.hooks import copy_hooks
from reparam_compiler.frontends.torch.module_state import attributes_kept
from reparam_compiler.frontends.torch.native import InPlace, NativeNodes
from reparam_compiler.frontends.torch.reader import TorchReader
from reparam_compiler.frontends.torch.spellings import ComputedSizes
from reparam_compiler.frontends.torch.tensors import check_count, deep_copy
from reparam_compiler.frontends.torch.tracing.calls import named
from reparam_compiler.frontends.torch.transforms import check_transforms
from reparam_compiler.frontends.torch.wide import in_float64
from reparam_compiler.ir.graph import Diff, Graph, diff
from reparam_compiler.ir.windows import ConvPadding

logger = logging.getLogger(__name__)
_KEEPS_ITS_TENSORS = (torch.jit.ScriptModule, nn.DataParallel)
"""Modules that `functional_call` does not run."""


class FxFrontend:
    """Reads and writes `torch.fx.GraphModule`."""

    name = "torch.fx"

    def read(self, model: fx.GraphModule, example_inputs: Sequence[Any] | None = None) -> "FxReading":
        """The graph; shapes are known where example inputs are given or the nodes carry them (`tensor_meta`, `val`).

        Raises UnsupportedModelError where the model does not run on the example inputs, takes fewer, or has vmap or jvp in it.
        """
        check_transforms(model.graph)
        takes = [str(node.target) for node in model.graph.find_nodes(op="placeholder")]
        if example_inputs is not None and not any(name.startswith("*") for name in takes):
            check_count(type(model).__name__, example_inputs, len(takes))
        values = _propagate(model, example_inputs) if example_inputs is not None else _recorded(model)
        tensors = {}
        for node in model.graph.nodes:
            if node.op == "get_attr" and isinstance(tensor := attribute(model, str(node.target)), Tensor):
                tensors[node.name] = (str(node.target), tensor)
        reader = TorchReader(model.graph, model, tensors, values)
        graph = replace(
            reader.read(),
            sizes_are_fixed=False,  # a trace runs on other sizes as well
            conv_padding=ConvPadding(uneven=False),
        )
        return FxReading(model, graph, InPlace.of(reader.writes, reader.written_into), reader.same)


@dataclass(frozen=True, slots=True)
class FxReading:
    """A GraphModule that has been read. same: for each node that is another name of a value, that value."""

    model: fx.GraphModule
    graph: Graph
    in_place: InPlace
    same: Mapping[str, str]

    def write(self, after: Graph, *, inplace: bool = False, exact: bool = False) -> fx.GraphModule:
        """The model that computes `after`; with `exact` in float64, the new weights not rounded."""
        if exact:
            return self.written(after, in_float64(self.model), exact=True).model
        return self.written(after, self.model if inplace else self.copied(after, {})).model

    def copied(self, after: Graph, memo: dict[int, Any]) -> fx.GraphModule:
        """A deep copy, without the weights that are about to go: they are never copied. memo: as `copy.deepcopy` has it."""
        going = {param.origin for param in self.graph.param_users} - {param.origin for param in after.param_users}
        names = {id(tensor): name for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers())}
        read = self._read_by_others(after)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if names[id(tensor)] in going and id(tensor) not in read:
                memo[id(tensor)] = torch.empty(0, dtype=tensor.dtype)
                if isinstance(tensor, nn.Parameter):
                    memo[id(tensor)] = nn.Parameter(memo[id(tensor)], requires_grad=tensor.requires_grad)
        copied = deep_copy(self.model, memo)
        copy_hooks(self.model, copied)  # a GraphModule's own copy has none
        return copied

    def _read_by_others(self, after: Graph) -> set[int]:
        """The tensors, by `id`, that a call reads which stays: ops that the graph does not know read some as well."""
        goes = {node.id for node in self.graph if after.nodes.get(node.id) is not node}
        read: set[int] = set()
        for node in self.model.graph.nodes:
            if node.op == "call_module" and node.name not in goes:
                module = self.model.get_submodule(str(node.target))
                read.update(id(tensor) for tensor in (*module.parameters(), *module.buffers()))
            elif node.op == "get_attr" and any(user.name not in goes for user in node.users):
                holder = self.model.get_submodule(str(node.target).rpartition(".")[0])  # which stays, with all that it holds
                tensors = (*holder.parameters(), *holder.buffers()) if holder is not self.model else ()
                read.update(id(tensor) for tensor in (*tensors, attribute(self.model, str(node.target))))
        return read

    def written(self, after: Graph, model: fx.GraphModule, *, exact: bool = False, keep_calls: bool = False) -> "WrittenTrace":
        """`model`, the one that was read or a copy of it, made to compute `after`; `keep_calls`: and what it called before."""
        names = [node.name for node in self.model.graph.nodes]  # a copy renames what is called as a builtin is
        nodes = dict(zip(names, model.graph.nodes, strict=True))
        name_of = {node: name for name, node in nodes.items()}
        changes = diff(self.graph, after)
        if not changes:
            return WrittenTrace(model, {}, nodes, self.same, changes)
        native = NativeNodes(nodes, self.in_place)
        calls = {name: Call.of(node, name_of) for name, node in nodes.items()} if keep_calls else {}
        sizes = ComputedSizes.after_cut(self.graph, after)
        GraphModuleWriter(model, self.graph, changes, exact, sizes).write(native)
        return WrittenTrace(model, calls, native.nodes, self.same, changes)


@dataclass(frozen=True, slots=True)
class Call:
    """A node as it was read; its arguments have a `Ref` for each node."""

    op: str
    target: Any
    args: Any
    kwargs: Any

    @classmethod
    def of(cls, node: fx.Node, names: Mapping[fx.Node, str]) -> "Call":
        """names: of the nodes of its graph."""
        args, kwargs = named((node.args, dict(node.kwargs)), names)
        return cls(node.op, node.target, args, kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class WrittenTrace:
    """A GraphModule that was written.

    calls: its nodes before the changes, by their names, where they were kept.
    nodes: what holds the value of each now, of which some are erased.
    same: as in `FxReading`.
    """

    model: fx.GraphModule
    calls: Mapping[str, Call]
    nodes: Mapping[str, fx.Node]
    same: Mapping[str, str]
    changes: Diff


def _propagate(model: fx.GraphModule, example_inputs: Sequence[Any]) -> dict[str, Any]:
    """A fake tensor for each node, up to where a size depends on values.

    Nothing is computed, and the model's buffers are not touched.
    """
    values: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

        def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
            module = self.fetch_attr(target)
            if any(isinstance(part, _KEEPS_ITS_TENSORS) for part in module.modules()):
                return super().call_module(target, args, kwargs)
            # with tensors that are fake as well: torch keeps no shapes of calls that mix them
            tensors = (*module.named_parameters(), *module.named_buffers())
            return functional_call(module, {name: mode.from_tensor(tensor) for name, tensor in tensors}, args, kwargs)

        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            value = super().get_attr(target, args, kwargs)
            return mode.from_tensor(value) if isinstance(value, Tensor) else value  # a real one would be written to

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, tuple(example_inputs))
    try:
        with mode, torch.no_grad(), attributes_kept(model):
            Recorder(model).run(*fake)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        logger.info("%s has sizes that depend on values; those from there on are not known: %s", type(model).__name__, error)
    except Exception as error:
        if (computed := _computed(model, example_inputs)) is not None:
            return computed
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in example_inputs]
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on the example inputs {shapes}: {first_line(error)}; "
            + in_words_of(python="pass what its forward() takes", command="give --input-shapes as its forward() takes them")
        ) from error
    return values


def _computed(model: fx.GraphModule, example_inputs: Sequence[Any]) -> dict[str, Any] | None:
    """A tensor without storage for each node of a copy that is run, which ops without a fake form need; None where it fails."""
    values: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if not isinstance(value, Tensor):
                values[n.name] = value
            elif not value.is_quantized:
                values[n.name] = torch.empty_like(value, device="meta")
            return value

    try:
        with torch.no_grad():
            Recorder(deep_copy(model)).run(*deep_copy(tuple(example_inputs)))
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        logger.info("%s does not run: %s", type(model).__name__, error)
        return None
    return values


def _recorded(model: fx.GraphModule) -> dict[str, Any]:
    """What earlier passes left in the nodes: fake tensors, or tensor metadata made into tensors without storage."""
    values: dict[str, Any] = {}
    for node in model.graph.nodes:
        meta = node.meta.get("tensor_meta")
        if isinstance(value := node.meta.get("val"), Tensor):
            values[node.name] = value
        elif meta is not None and hasattr(meta, "shape") and hasattr(meta, "dtype"):
            values[node.name] = torch.empty(meta.shape, dtype=meta.dtype, device="meta")
    return values
