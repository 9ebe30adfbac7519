"""A model takes any number of samples, or those of its export alone, and it is found out by running it."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, Graph, Node, Param, TensorType
from reparam_compiler.models.batch_size import fixed_batch
from reparam_compiler.models.opening import open

SHAPE = (3, 5, 4)


def graph_with(op: ops.Op, batch: Dim = 2, *, fixed: bool = True, dtype: str = "f32") -> Graph:
    nodes = [Node("x", ops.Input(), (), TensorType(dtype, (batch, *SHAPE))), Node("y", op, ("x",), None)]
    return Graph.of(nodes, ["y"], sizes_are_fixed=fixed)


def opaque(run: object) -> ops.Opaque:
    return ops.Opaque("custom", run)  # type: ignore[arg-type]


def refuses_more(x: Tensor) -> Tensor:
    assert len(x) == 2
    return x


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (ops.Reshape((2, 60)), 2),
        (ops.Reshape((2, 3, -1)), 2),  # of more samples it makes longer rows
        (ops.Reshape((-1, 12, 10)), 2),  # and here two samples share an element of the first axis
        (ops.Reshape((-1, 60)), None),
        (ops.Reshape((0, 60)), None),
        (ops.Flatten(1, 3), None),
        (opaque(lambda x: x.sin()), None),
        (opaque(lambda x: x.movedim(0, 2)), None),  # side by side along another axis
        (opaque(lambda x: x - x.mean(0)), 2),
        (opaque(lambda x: x.sum()), 2),
        (opaque(refuses_more), 2),
    ],
)
def test_a_batch_is_fixed_where_samples_are_not_independent(op: ops.Op, expected: int | None, fixed: bool) -> None:
    assert fixed_batch(graph_with(op, fixed=fixed)) == expected


def test_an_open_batch_is_never_fixed() -> None:
    assert fixed_batch(graph_with(ops.Reshape((2, 60)), "N")) is None


def test_what_cannot_be_run_keeps_the_batch_of_an_export_and_no_other() -> None:
    assert fixed_batch(graph_with(ops.Opaque("custom"))) == 2
    assert fixed_batch(graph_with(ops.Opaque("custom"), fixed=False)) is None


@pytest.mark.parametrize("dtype", ["i64", "bool", "f16"])
def test_inputs_of_every_kind_are_tried(dtype: str) -> None:
    def differences(x: Tensor) -> Tensor:
        return x.float() - x.float().mean(0)

    assert fixed_batch(graph_with(opaque(differences), dtype=dtype)) == 2
    assert fixed_batch(graph_with(opaque(lambda x: x.float() + 1), dtype=dtype)) is None


def test_guards_of_an_exported_module_fix_nothing() -> None:
    module = torch.export.export(nn.Conv2d(3, 4, 1), (torch.ones(1, *SHAPE),)).module()
    graph = open(module, (torch.ones(1, *SHAPE),)).graph
    assert any(isinstance(node.op, ops.Opaque) for node in graph)
    assert fixed_batch(graph) is None


def test_one_scalar_input_states_no_batch() -> None:
    nodes = [Node("x", ops.Input(), (), TensorType("f32", ())), Node("y", opaque(torch.sin), ("x",), None)]
    assert fixed_batch(Graph.of(nodes, ["y"])) is None


@pytest.mark.parametrize(("shape", "expected"), [((2, 60), 2), ((-1, 60), None)])
def test_a_number_beside_the_samples_states_no_batch(shape: tuple[int, int], expected: int | None) -> None:
    nodes = [
        Node("t", ops.Input(), (), TensorType("f32", ())),
        Node("x", ops.Input(), (), TensorType("f32", (2, *SHAPE))),
        Node("scaled", ops.Mul(), ("x", "t"), None),
        Node("y", ops.Reshape(shape), ("scaled",), None),
    ]
    assert fixed_batch(Graph.of(nodes, ["y"])) == expected


class Recurrent(nn.Module):
    """Its export holds first states of the batch that it was made for."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = layer(5, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.flatten(1, 2).relu())[0]


@pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn:UserWarning")
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_is_never_run_on_states_of_another_batch(layer: type[nn.RNNBase]) -> None:
    """torch's own kernel does not check them."""
    program = torch.export.export(Recurrent(layer).eval(), (torch.randn(2, 3, 4, 5),))
    assert fixed_batch(open(program).graph) == 2


def test_a_constant_of_as_many_samples_fixes_the_batch() -> None:
    def joined(samples: int) -> Graph:
        rows = Param.of(np.ones((samples, 1, 5, 4), np.float32), role="const", dtype="f32")
        nodes = [
            Node("x", ops.Input(), (), TensorType("f32", (2, *SHAPE))),
            Node("y", ops.Concat(1), ("x", rows), TensorType("f32", (2, 4, 5, 4))),
        ]
        return Graph.of(nodes, ["y"], sizes_are_fixed=True)

    assert fixed_batch(joined(2)) == 2
