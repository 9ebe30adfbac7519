"""torch.fx.GraphModule in, GraphModule out.

The result is an ordinary GraphModule: a deep copy of the caller's, in which every new conv is an `nn.Conv2d` (`Conv1d`,
`Conv3d`, `Linear`) under the name of what it replaces, and pruned tensors stand in the modules that had them before.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from reparam_compiler.errors import RewriteError, UnsupportedModelError
from reparam_compiler.frontends.base import Comparison
from reparam_compiler.frontends.torch.module_widths import update_module
from reparam_compiler.frontends.torch.native import InPlace, NativeNodes
from reparam_compiler.frontends.torch.padded_conv import conv_of
from reparam_compiler.frontends.torch.reader import TorchReader
from reparam_compiler.frontends.torch.spellings import ComputedSizes, update_call
from reparam_compiler.frontends.torch.tensor_arguments import exchanged_params, set_tensor_argument
from reparam_compiler.frontends.torch.tensors import deep_copy, tensor_from
from reparam_compiler.frontends.torch.writer import new_module
from reparam_compiler.interpreter.difference import EXACT, Difference, difference
from reparam_compiler.ir.graph import Diff, Graph, Node, Param, diff

logger = logging.getLogger(__name__)


class FxFrontend:
    """Reads and writes `torch.fx.GraphModule`."""

    name = "torch.fx"

    def matches(self, model: object) -> bool:
        """True for a GraphModule."""
        return isinstance(model, fx.GraphModule)

    def read(self, model: fx.GraphModule, example_inputs: Sequence[Any] | None = None) -> "FxReading":
        """The graph; shapes are known where example inputs are given or the nodes carry them (`tensor_meta`, `val`).

        Raises UnsupportedModelError where the model does not run on the example inputs.
        """
        values = _propagate(model, example_inputs) if example_inputs is not None else _recorded(model)
        tensors = {}
        for node in model.graph.nodes:
            if node.op == "get_attr" and isinstance(tensor := _attribute(model, str(node.target)), Tensor):
                tensors[node.name] = (str(node.target), tensor)
        reader = TorchReader(model.graph, model, tensors, values)
        graph = replace(reader.read(), sizes_are_fixed=False)  # a trace runs on other sizes as well
        return FxReading(model, graph, InPlace.of(reader.writes, reader.written_into))


_SUSPECT = 1e-5
"""A relative difference of two float64 runs above which they are run in the model's dtype as well."""
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
"""What calls of a module run beside its forward()."""


def _is_torch_s(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith("torch.")


@dataclass(frozen=True, slots=True)
class FxReading:
    """A GraphModule that has been read."""

    model: fx.GraphModule
    graph: Graph
    in_place: InPlace

    def write(self, after: Graph, *, inplace: bool = False) -> fx.GraphModule:
        """The model that computes `after`."""
        return self._write(after, self.model if inplace else self._copy(after))

    def compare(self, after: Graph, example_inputs: Sequence[Any] | None) -> Comparison | None:
        """Both models in float64 where they run in it, the new weights not rounded, on the example inputs."""
        if example_inputs is None:
            return None

        def copies(exact: bool) -> tuple[nn.Module, nn.Module]:
            before, after_model = deep_copy(self.model), deep_copy(self.model)
            if exact:
                before, after_model = before.double(), after_model.double()
            return before, self._write(after, after_model, exact=exact)

        worst, dtype = compare_copies(copies, example_inputs)
        return Comparison(worst, dtype, "torch", "example inputs")

    def _copy(self, after: Graph) -> fx.GraphModule:
        """A deep copy, without the weights that are about to go: they are never copied."""
        going = {param.origin for param in self.graph.param_users} - {param.origin for param in after.param_users}
        names = {id(tensor): name for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers())}
        read = self._read_by_others(after)
        memo: dict[int, Any] = {}
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if names[id(tensor)] in going and id(tensor) not in read:
                memo[id(tensor)] = torch.empty(0, dtype=tensor.dtype)
                if isinstance(tensor, nn.Parameter):
                    memo[id(tensor)] = nn.Parameter(memo[id(tensor)], requires_grad=tensor.requires_grad)
        copied = deep_copy(self.model, memo)
        for name in _HOOKS:  # a GraphModule's own copy has none; those of torch.export read attributes that it has not either
            hooks = getattr(self.model, name).items()
            getattr(copied, name).update({key: hook for key, hook in hooks if not _is_torch_s(hook)})
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
                read.update(id(tensor) for tensor in (*tensors, _attribute(self.model, str(node.target))))
        return read

    def _write(self, after: Graph, model: fx.GraphModule, *, exact: bool = False) -> fx.GraphModule:
        changes = diff(self.graph, after)
        if changes:
            names = [node.name for node in self.model.graph.nodes]  # a copy renames what is called as a builtin is
            nodes = dict(zip(names, model.graph.nodes, strict=True))
            _Writer(model, self.graph, changes, exact, ComputedSizes.after_cut(self.graph, after)).write(
                NativeNodes(nodes, self.in_place)
            )
        return model


@dataclass
class _Writer:
    """Writes a difference into a GraphModule, which it changes."""

    model: fx.GraphModule
    before: Graph
    changes: Diff
    exact: bool
    sizes: ComputedSizes
    _holders: dict[int, list[tuple[nn.Module, str]]] = field(default_factory=dict, init=False)

    def write(self, nodes: NativeNodes) -> None:
        """nodes: those of the model."""
        for module in self.model.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                self._holders.setdefault(id(tensor), []).append((module, name))
        old_targets = self._targets()
        updated: dict[str, Param] = {}
        for node in self.changes.changed:
            if node.replaces:
                nodes.replace(node.id, self._replace(nodes, node))
            else:
                self._update(nodes.call(node.id), node, updated)
        nodes.erase_unread(self.model.graph, self.changes.removed)
        self.model.graph.lint()
        self._delete(old_targets - self._targets())
        self.model.recompile()

    def _trains(self, node: Node) -> bool:
        """Whether any parameter of what a new module replaces takes a gradient; True where there is none."""
        origins = {param.origin for old in (node.replaces or (node.id,)) for param in self.before[old].params}
        tensors = [_attribute(self.model, origin) for origin in origins if origin]
        found = [tensor.requires_grad for tensor in tensors if isinstance(tensor, nn.Parameter)]
        return any(found) or not found

    def _replace(self, nodes: NativeNodes, node: Node) -> fx.Node:
        sink = nodes[node.id]
        called = [str(nodes.call(i).target) for i in node.replaces if nodes.call(i).op == "call_module"]
        like = self._like(node)
        with torch.no_grad():
            built = new_module(node, lambda param: tensor_from(param, device=like, exact=self.exact), trains=self._trains(node))
        target = self._free_name(_common_name(called), called)
        self.model.add_submodule(target, built)
        with self.model.graph.inserting_before(nodes.first_reader(self.before, node)):
            new = self.model.graph.call_module(target, (nodes[node.sources[0]],))
        if "tensor_meta" in sink.meta:
            new.meta["tensor_meta"] = sink.meta["tensor_meta"]
        if "val" in sink.meta:
            new.meta["val"] = sink.meta["val"]
        return new

    def _like(self, node: Node) -> torch.device:
        """The device of what is replaced."""
        for node_id in node.replaces:
            for param in self.before[node_id].params:
                if param.origin and isinstance(tensor := _attribute(self.model, param.origin), Tensor):
                    return tensor.device
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _update(self, fx_node: fx.Node, node: Node, updated: dict[str, Param]) -> None:
        if fx_node.op == "call_module" and parametrize.is_parametrized(self.model.get_submodule(str(fx_node.target))):
            # A plain module instead: removing a parametrization edits its class, which the caller's module has as well.
            plain = new_module(node, lambda param: tensor_from(param, exact=self.exact), trains=self._trains(node))
            self.model.set_submodule(str(fx_node.target), plain)
            return
        for index, param in exchanged_params(self.before, node, fx_node):
            if param.origin is None:
                self._exchange(fx_node, node, index, param)
            elif param.origin not in updated:
                updated[param.origin] = param
                self._set_tensor(param.origin, tensor_from(param, exact=self.exact))
            elif updated[param.origin] is not param:
                raise RewriteError(f"{node.id}: {param.origin} is shared, and its users changed it in different ways")
        if fx_node.op == "call_module":
            update_module(self.model.get_submodule(str(fx_node.target)), node)
        else:
            update_call(fx_node, self.before[node.id], node, self.sizes)

    def _set_tensor(self, path: str, tensor: Tensor) -> None:
        """Puts a tensor of another shape in place of one, under all its names, as a parameter where that was one."""
        holder, _, leaf = path.rpartition(".")
        old = getattr(self.model.get_submodule(holder), leaf)
        new = tensor.to(old.device)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for module, name in self._holders.get(id(old), [(self.model.get_submodule(holder), leaf)]):
            setattr(module, name, new)

    def _exchange(self, fx_node: fx.Node, node: Node, index: int, param: Param) -> None:
        """A tensor that the model had no name for: a bias where there was none, or what was computed from parameters."""
        tensor = nn.Parameter(tensor_from(param, exact=self.exact), requires_grad=self._trains(node))
        if fx_node.op == "call_module":
            module, name = conv_of(self.model.get_submodule(str(fx_node.target))), ("weight", "bias")[index - 1]
            setattr(module, name, tensor)
            return
        name = self._free_name(f"{fx_node.name}_{param.role}", [])
        self.model.register_parameter(name, tensor)
        with self.model.graph.inserting_before(fx_node):
            got = self.model.graph.get_attr(name)
        set_tensor_argument(fx_node, self.before, node, index, got)

    def _free_name(self, wanted: str, replaced: Sequence[str]) -> str:
        """The wanted path, or one beside it: a path is free where nothing stands, or only what is replaced."""
        taken = {name for name, _ in self.model.named_modules()} | {name for name, _ in self.model.named_parameters()}
        numbered = (wanted if i == 0 else f"{wanted}_{i}" for i in range(len(taken) + 1))
        return next(name for name in numbered if name not in taken and not hasattr(self.model, name))

    def _targets(self) -> set[str]:
        return {str(node.target) for node in self.model.graph.nodes if node.op in ("call_module", "get_attr")}

    def _delete(self, targets: set[str]) -> None:
        """Removes modules and attributes that nothing calls any more, and what is left empty by that."""
        kept = self._targets()
        for target in sorted(targets, key=lambda t: -t.count(".")):
            path, _, leaf = target.rpartition(".")
            if any(name == target or name.startswith(f"{target}.") for name in kept):
                continue
            holder = self.model.get_submodule(path)
            if hasattr(holder, leaf):
                delattr(holder, leaf)
            while path and not any((holder._modules, holder._parameters, holder._buffers)):
                path, _, leaf = path.rpartition(".")
                holder = self.model.get_submodule(path)
                delattr(holder, leaf)


def compare_copies(copies: Callable[[bool], tuple[nn.Module, nn.Module]], inputs: Sequence[Any]) -> tuple[Difference, str]:
    """The largest difference of two modules' outputs, and the dtype that they ran in.

    That is float64, but for a model that converts to another dtype on its way and fails in float64, or that is another function
    in float64 (it rounds its weights to steps): both run in its own dtype. A wrong rewrite is as wrong in any dtype.

    Args:
        copies: gives both modules, in float64 where it is asked for that.
        inputs: what they are called with.
    """
    exact = None
    try:
        exact = compare_modules(*copies(True), inputs, exact=True)
    except Exception as error:  # noqa: BLE001 - the model's own code, which raises what it likes
        logger.info("the model does not run in float64: %s", error)
    if exact is not None and exact.relative <= _SUSPECT:
        return exact, "float64"
    own = compare_modules(*copies(False), inputs, exact=False)
    if exact is None or own.relative <= min(_SUSPECT, exact.relative / 10):
        return own, "the model's own dtype"
    return exact, "float64"


def compare_modules(before: nn.Module, after: nn.Module, inputs: Sequence[Any], *, exact: bool) -> Difference:
    """The largest difference of two modules' outputs on copies of these inputs; floating ones in float64 where `exact`."""
    results = []
    for model in (before, after):
        given = torch.utils._pytree.tree_map_only(Tensor, lambda t: _prepared(t, exact), tuple(inputs))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # an op that draws draws the same in both
            results.append([v for v in torch.utils._pytree.tree_leaves(model(*given)) if isinstance(v, Tensor)])
    worst = EXACT
    for a, b in zip(*results, strict=True):
        worst = max(worst, difference(a, b), key=lambda d: d.relative)
    return worst


def _prepared(tensor: Tensor, exact: bool) -> Tensor:
    return tensor.to(torch.float64, copy=True) if exact and tensor.is_floating_point() else tensor.clone()


def _propagate(model: fx.GraphModule, example_inputs: Sequence[Any]) -> dict[str, Any]:
    """A fake tensor for each node; nothing is computed, and the model's buffers are not touched."""
    values: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            value = super().get_attr(target, args, kwargs)
            return mode.from_tensor(value) if isinstance(value, Tensor) else value  # a real one would be written to

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, tuple(example_inputs))
    try:
        with mode, torch.no_grad():
            Recorder(model).run(*fake)
    except Exception as error:
        found = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in example_inputs]
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on the example inputs {found}: {error}; pass what its forward() takes"
        ) from error
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


def _common_name(targets: Sequence[str]) -> str:
    """`stage1.0.fused` for `stage1.0.conv3.conv` and `stage1.0.conv1.bn`: a name beside theirs, never below one."""
    levels = zip(*(target.split(".")[:-1] for target in targets), strict=False)
    return ".".join([*(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)), "fused"])


def _attribute(model: nn.Module, path: str) -> object:
    found: object = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
