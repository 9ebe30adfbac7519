"""The fake values of an exported program's nodes: of new calls, and of all that a cut gives another shape."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor

from reparam_compiler.ir.graph import Dim
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.resolve import resolve_function


def _is_like(x: fx.Node, call: fx.Node) -> bool:
    """Whether a call gives a tensor of the shape and dtype of its first argument."""
    called = resolve_function(call.target)
    of_elements = called.row is not None and called.row.form == "pointwise" and call.all_input_nodes == [x]
    value = x.meta["val"]
    return isinstance(value, Tensor) and value.is_floating_point() and (of_elements or Facts.LIKE_INPUT in called.facts)


def _reshaped(mode: Any, value: object, shape: tuple[Dim, ...]) -> FakeTensor | None:
    """A value of another shape with its axes in memory as they were; None where it has gaps, or a size is no number.

    It takes a tenth of the time of the fake kernel that would find the same.
    """
    sizes = [size for size in shape if isinstance(size, int)]
    if not isinstance(value, FakeTensor) or len(sizes) != len(shape) or len(shape) != value.ndim or _is_open(value):
        return None
    strides = value.stride()
    order = sorted(range(value.ndim), key=strides.__getitem__, reverse=True)
    if _dense(value.shape, order) != strides:
        return None
    meta = torch.empty_strided(sizes, _dense(sizes, order), dtype=value.dtype, device="meta")
    return FakeTensor(mode, meta, value.device)


def _is_open(value: Tensor) -> bool:
    """True where a size is no number."""
    return not all(isinstance(size, int) for size in value.shape)


def _dense(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor without gaps; order: its axes, the outermost in memory first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis], step = step, step * max(shape[axis], 1)
    return tuple(strides)


def _stored(mode: Any, tensor: Tensor) -> FakeTensor:
    """The fake value of a tensor of the model."""
    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake = FakeTensor(mode, meta, tensor.device)
    fake.requires_grad_(tensor.requires_grad)
    return fake


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

    def retype(
        self,
        tensor_of: Callable[[fx.Node], Tensor | None],
        updated: Collection[fx.Node],
        shapes: Mapping[str, tuple[Dim, ...]],
    ) -> None:
        """New values for tensors whose shapes have changed, and for all that is computed from them.

        tensor_of: the new tensor of a placeholder that has one. updated: calls whose arguments have changed.
        shapes: by name those that the calls give now, where they are known.
        """
        mode = self._mode()
        changed: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op == "placeholder" and (tensor := tensor_of(node)) is not None:
                node.meta["val"] = _stored(mode, tensor)
                changed.add(node)
            elif node.op == "call_function" and "val" in node.meta and (node in updated or changed & {*node.all_input_nodes}):
                known = _reshaped(mode, node.meta["val"], shapes.get(node.name, ()))
                node.meta["val"] = self._retyped(mode, node) if known is None else known
                changed.add(node)

    def _retyped(self, mode: Any, node: fx.Node) -> Any:
        x = node.args[0] if node.args else None
        with mode, enable_python_dispatcher(), torch.no_grad():
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
