"""Small graphs built by hand, with random weights and sizes that are not square, for the tests of pruning."""

from collections.abc import Sequence

import numpy as np
import torch

from reparam_compiler.interpreter.evaluate import evaluate_node
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param, TensorType

SIZE = (9, 7)


class Net:
    """A graph that grows by a node at a time; types come from running it."""

    def __init__(self, channels: int = 3, *, size: Sequence[int] = SIZE, seed: int = 0, batch: int | str | None = 2) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: dict[NodeId, Node] = {}
        self.batch = batch
        self.x = self._put(ops.Input(), (), "x", TensorType("f32", (batch, channels, *size)))

    def param(self, *shape: int, role: str = "const", origin: str | None = None, low: float = -1.0) -> Param:
        return Param.of(self.random.uniform(low, 1.5, shape).astype(np.float32), role=role, dtype="f32", origin=origin)

    def add(self, op: ops.Op, *inputs: Operand, name: str = "") -> NodeId:
        return self._put(op, inputs, name or f"{op.name}_{len(self.nodes)}", None)

    def channels(self, node_id: NodeId, axis: int = 1) -> int:
        known = self.nodes[node_id].type
        assert known is not None
        size = known.shape[axis]
        assert isinstance(size, int)
        return size

    def conv(
        self, x: NodeId, out: int, kernel: int = 3, *, groups: int = 1, stride: int = 1, bias: bool = True, name: str = ""
    ) -> NodeId:
        name = name or f"conv_{len(self.nodes)}"
        weight = self.param(out, self.channels(x) // groups, kernel, kernel, role="weight", origin=f"net.{name}.weight")
        shift = self.param(out, role="bias", origin=f"net.{name}.bias") if bias else None
        pad = ((kernel // 2, kernel // 2),) * 2
        return self.add(ops.Conv((stride, stride), pad, (1, 1), groups), x, weight, shift, name=name)

    def linear(self, x: NodeId, out: int, *, bias: bool = True, name: str = "") -> NodeId:
        name = name or f"linear_{len(self.nodes)}"
        weight = self.param(out, self.channels(x, -1), role="weight", origin=f"net.{name}.weight")
        return self.add(ops.Linear(), x, weight, self.param(out, role="bias") if bias else None, name=name)

    def norm(self, x: NodeId) -> NodeId:
        name, c = f"bn_{len(self.nodes)}", self.channels(x)
        roles = (("weight", -1.0), ("bias", -1.0), ("mean", -1.0), ("var", 0.2))
        params = [self.param(c, role=role, origin=f"net.{name}.{role}", low=low) for role, low in roles]
        return self.add(ops.BatchNorm(), x, *params, name=name)

    def relu(self, x: NodeId) -> NodeId:
        return self.add(ops.Elementwise("relu"), x)

    def sigmoid(self, x: NodeId) -> NodeId:
        return self.add(ops.Elementwise("sigmoid"), x)

    def sum(self, *values: Operand) -> NodeId:
        return self.add(ops.Add((1.0,) * len(values)), *values)

    def concat(self, *values: Operand, axis: int = 1) -> NodeId:
        return self.add(ops.Concat(axis), *values)

    def split(self, x: NodeId, *sizes: int, axis: int = 1) -> list[NodeId]:
        pieces = self.add(ops.Split(axis, sizes), x)
        return [self.add(ops.TupleGet(index), pieces) for index in range(len(sizes))]

    def pool(self, x: NodeId) -> NodeId:
        return self.add(ops.AdaptiveAvgPool((1, 1)), x)

    def shuffle(self, x: NodeId, groups: int) -> NodeId:
        c, (h, w) = self.channels(x), SIZE
        parts = self.add(ops.Reshape((0, groups, c // groups, h, w)), x)
        return self.add(ops.Reshape((0, -1, h, w)), self.add(ops.Permute((0, 2, 1, 3, 4)), parts))

    def head(self, x: NodeId, classes: int = 5) -> Graph:
        return self.graph(self.linear(self.add(ops.Flatten(1, 3), self.pool(x)), classes, name="head"))

    def graph(self, *outputs: NodeId) -> Graph:
        return Graph.of(self.nodes.values(), outputs)

    def _put(self, op: ops.Op, inputs: tuple[Operand, ...], name: str, known: TensorType | None) -> NodeId:
        self.nodes[name] = Node(name, op, inputs, known)
        if known is None:
            self.nodes[name] = Node(name, op, inputs, self._type(name))
        return name

    def _type(self, name: NodeId) -> TensorType | None:
        """Found by running the op on zeros of its operands' shapes, with a batch of two."""
        node = self.nodes[name]
        if isinstance(node.op, ops.Split):
            return None
        values = {}
        for source in node.sources:
            maker = self.nodes[source]
            if isinstance(maker.op, ops.Split):
                values[source] = evaluate_node(maker, {s: self._zeros(s) for s in maker.sources}, torch.float32)
            else:
                values[source] = self._zeros(source)
        shape = tuple(evaluate_node(node, values, torch.float32).shape)
        return TensorType("f32", (self.batch, *shape[1:]) if shape[0] == 2 else shape)

    def _zeros(self, name: NodeId) -> torch.Tensor:
        known = self.nodes[name].type
        assert known is not None
        return torch.zeros([size if isinstance(size, int) else 2 for size in known.shape])
