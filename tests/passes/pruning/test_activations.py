"""Two networks run side by side, in memory or in files."""

import numpy as np
import pytest
import torch

from reparam_compiler.errors import InfeasiblePruneError, InvalidGraphError
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param, TensorType, with_inputs
from reparam_compiler.passes.pruning.repair.activations import Activations
from tests.support.pruning_nets import SIZE, Net


def data(count: int = 3) -> list[tuple[torch.Tensor]]:
    return [(torch.randn(4, 3, *SIZE, dtype=torch.float64),) for _ in range(count)]


def test_an_input_that_is_one_number_is_no_sample() -> None:
    graph = chain()
    scale = Node("scale", ops.Input(), (), TensorType("f32", ()))
    values = Activations(Graph.of([scale, *graph], graph.outputs), [(torch.tensor(2.0), *batch) for batch in data()])
    assert values.samples == 12


def chain() -> Graph:
    net = Net()
    return net.graph(net.relu(net.conv(net.relu(net.conv(net.x, 5, name="a")), 4, name="b")))


@pytest.mark.parametrize("budget", [2**30, 0])
def test_values_are_those_of_both_networks_wherever_they_are_held(budget: int) -> None:
    graph, batches = chain(), data()
    weight = graph["b"].params[0]
    halved = Param.of(weight.float64() / 2, role="weight", dtype="f64")
    changed = graph.rewrite({"b": with_inputs(graph["b"], {1: halved})})
    values = Activations(graph, batches, dtype=torch.float64, budget=budget)
    assert values.samples == 12
    for node in graph:
        if isinstance(node.op, ops.Input):
            continue
        values.run_before(node)
        if node.id == "b":
            for (x,), before, now in zip(batches, values.before("b"), values.preview(changed["b"]), strict=True):
                wanted = [evaluate(g, {"x": x}, wanted=["b"])["b"] for g in (graph, changed)]
                torch.testing.assert_close(before, wanted[0])
                torch.testing.assert_close(now, wanted[1])
            assert values.same(node)
        values.run_now(node, changed[node.id])
        if node.id == "b":
            for before, now in zip(values.before("b"), values.now("b"), strict=True):
                assert not torch.equal(before, now)


def test_what_nothing_reads_any_more_is_let_go() -> None:
    graph = chain()
    values = Activations(graph, data())
    for node in graph:
        if not isinstance(node.op, ops.Input):
            values.run_before(node)
            values.run_now(node, node)
    assert not [node.id for node in graph if node.id in values]
    assert values._room == 2**30  # all that was taken was given back


def test_values_that_have_not_changed_are_held_once() -> None:
    graph = chain()
    values = Activations(graph, data(1))
    values.run_before(graph["a"])
    values.run_now(graph["a"], graph["a"])
    (before,), (now,) = values.before("a"), values.now("a")
    assert before is now


def test_after_an_op_that_cannot_be_run_nothing_is_known() -> None:
    net = Net()
    graph = net.graph(net.conv(net.add(ops.Opaque("odd", lambda v: v), net.x, name="odd"), 4, name="last"))
    odd = graph["odd"]
    values = Activations(graph, data())
    hidden = type(odd)("odd", ops.Opaque("odd"), odd.inputs, odd.type)
    values.run_before(hidden)
    values.run_now(hidden, hidden)
    values.run_before(graph["last"])
    assert "odd" not in values
    assert "last" not in values


def test_a_value_of_several_tensors_is_not_read_as_one() -> None:
    net = Net(4)
    graph = net.graph(net.add(ops.Split(1, (2, 2)), net.x, name="s"))
    values = Activations(graph, [np.zeros((2, 4, *SIZE))])
    values.run_before(graph["s"])
    with pytest.raises(InvalidGraphError, match="several tensors"):
        next(values.before("s"))


@pytest.mark.parametrize(("given", "found"), [([], "no batch"), ([(np.zeros(1), np.zeros(1))], "2 arrays, the model 1 inputs")])
def test_data_that_does_not_fit_is_refused(given: list[tuple[np.ndarray, ...]], found: str) -> None:
    with pytest.raises(InfeasiblePruneError, match=found):
        Activations(chain(), given)
