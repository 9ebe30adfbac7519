"""The fake values of an exported program's nodes: of new calls, and of all that a cut gives another shape."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.resolve import resolve_function


def _is_like(x: fx.Node, call: fx.Node) -> bool:
    """Whether a call gives a tensor of the shape and dtype of its first argument."""
    called = resolve_function(call.target)
    of_elements = called.row is not None and called.row.form == "pointwise" and call.all_input_nodes == [x]
    value = x.meta["val"]
    return isinstance(value, Tensor) and value.is_floating_point() and (of_elements or Facts.LIKE_INPUT in called.facts)


@dataclass(frozen=True, slots=True)
class FakeValues:
    """The fake values of a graph. root: where its subgraphs live."""

    graph: fx.Graph
    root: fx.GraphModule

    @property
    def are_known(self) -> bool:
        """Whether the graph has any, as that of a program."""
        return any(hasattr(node.meta.get("val"), "fake_mode") for node in self.graph.nodes)

    def of_parameter(self, tensor: Tensor) -> Any:
        """That of a tensor of the model."""
        return self._mode().from_tensor(tensor, static_shapes=True)

    def of_call(self, node: fx.Node) -> Any:
        """That of a new call."""
        # without the dispatcher of Python, aten.pad takes symbolic sizes for the numbers that they were exported with
        with self._mode(), enable_python_dispatcher(), torch.no_grad():
            return self._called(node)

    def retype(self, tensor_of: Callable[[fx.Node], Tensor | None], updated: Collection[fx.Node]) -> None:
        """New values for tensors whose shapes have changed, and for all that is computed from them.

        tensor_of: the new tensor of a placeholder that has one. updated: calls whose arguments have changed.
        """
        mode = self._mode()
        changed: set[fx.Node] = set()
        with mode, enable_python_dispatcher(), torch.no_grad():
            for node in self.graph.nodes:
                if node.op == "placeholder" and (tensor := tensor_of(node)) is not None:
                    node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
                    changed.add(node)
                elif (
                    node.op == "call_function" and "val" in node.meta and (node in updated or changed & {*node.all_input_nodes})
                ):
                    node.meta["val"] = self._retyped(node)
                    changed.add(node)

    def _retyped(self, node: fx.Node) -> Any:
        x = node.args[0] if node.args else None
        if isinstance(x, fx.Node) and _is_like(x, node):
            # such fake kernels are decompositions, hundreds of times as slow
            memory_format: Any = node.kwargs.get("memory_format")
            return torch.empty_like(x.meta["val"], memory_format=memory_format)
        return self._called(node)

    def _called(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._value)
        target: Any = node.target
        return target(*args, **kwargs)

    def _value(self, node: fx.Node) -> Any:
        """The fake value of a node; of one that names a subgraph (the body of an autocast), that."""
        if node.op != "get_attr" or "val" in node.meta:
            return node.meta["val"]
        return self.root.get_submodule(str(node.target))

    def _mode(self) -> Any:
        values = (node.meta.get("val") for node in self.graph.nodes)
        return next(value.fake_mode for value in values if hasattr(value, "fake_mode"))
