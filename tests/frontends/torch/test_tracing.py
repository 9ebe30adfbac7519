"""What depends on parameters alone is answered while tracing; what depends on the input never is."""

import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from reparam_compiler.frontends.torch.tracing.tracer import symbolic_trace
from tests.support.asserting_models import asserts, asserts_one_of_two, asserts_the_contrary
from tests.support.small_models import EXACT, normal, relative_error, run


def traced(model: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.GraphModule:
    return symbolic_trace(model, concrete_args).graph_module


class Asks(nn.Module):
    """A model that is its forward."""

    def __init__(self, body: Callable[["Asks", Tensor], Any]) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([0.5]))
        self.zero = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2))
        self.scales = nn.ParameterList([torch.ones(1), torch.zeros(1)])
        self.register_buffer("table", torch.arange(10.0))
        self.gate = nn.Sigmoid()
        self.linear = nn.Linear(1, 1)
        self.channels = 4
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def branches_on_a_parameter(m: Asks, x: Tensor) -> Tensor:
    return x * m.alpha if m.alpha else x


def branches_on_one_that_is_zero(m: Asks, x: Tensor) -> Tensor:
    return x * m.alpha if m.zero else x + 1


def compares(m: Asks, x: Tensor) -> Tensor:
    return x * 2 if m.alpha.abs().sum() > 0.25 and not m.zero else x


def asks_a_module(m: Asks, x: Tensor) -> Tensor:
    return x * 2 if m.gate(m.alpha) > 0.5 else x


def converts(m: Asks, x: Tensor) -> Tensor:
    return x * float(m.alpha * 2) + m.alpha.item() + int(m.weight[2, 1])


def counts(m: Asks, x: Tensor) -> Tensor:
    for index in range(m.weight.shape[1]):
        x = x + m.weight[0, index]
    for row in m.weight:
        x = x + row.sum()
    for scale in m.scales:
        x = x * scale if scale > 0.5 else x
    return x * len(m.weight) * len(m.scales)


def raises_where_it_does_not_fit(m: Asks, x: Tensor) -> Tensor:
    if x.shape[1] != m.channels:
        raise ValueError("channels")
    return x


@pytest.mark.parametrize(
    "body",
    [
        branches_on_a_parameter,
        branches_on_one_that_is_zero,
        compares,
        asks_a_module,
        converts,
        counts,
        asserts,
        raises_where_it_does_not_fit,
    ],
)
def test_a_trace_computes_what_the_model_does(body: Callable[[Asks, Tensor], Any]) -> None:
    model, x = Asks(body).eval().double(), normal(2, 4, 3, 5)
    assert relative_error(run(model, x), run(traced(model), x)) < EXACT  # float64


def test_the_trace_names_what_was_frozen() -> None:
    assert traced(Asks(branches_on_a_parameter).eval()).meta["frozen"] == ("alpha",)
    assert traced(Asks(compares).eval()).meta["frozen"] == ("alpha", "zero")
    assert traced(Asks(asserts).eval()).meta["frozen"] == ()


def test_what_was_only_asked_for_is_not_computed() -> None:
    trace = traced(Asks(branches_on_one_that_is_zero).eval())
    assert [node.name for node in trace.graph.nodes] == ["x", "add", "output"]


def test_a_parameter_that_is_asked_for_and_read_stays_one() -> None:
    trace = traced(Asks(branches_on_a_parameter).eval())
    assert [node.target for node in trace.graph.nodes if node.op == "get_attr"] == ["alpha"]


@pytest.mark.parametrize("body", [asserts, asserts_the_contrary, raises_where_it_does_not_fit])
def test_a_check_of_the_input_is_made_by_the_trace(body: Callable[[Asks, Tensor], Any]) -> None:
    trace = traced(Asks(body).eval())
    said = {asserts: "assert x.shape", asserts_the_contrary: "assert not", raises_where_it_does_not_fit: "raise ValueError"}
    where = rf"\(\w+.py:\d+, {body.__name__}\(\)\)$"
    with pytest.raises(AssertionError, match=rf"^{said[body]}.*{where}"):
        trace(torch.zeros(1, 3, 2, 2))


def test_a_check_without_source_names_its_function() -> None:
    space: dict[str, Any] = {}
    exec("def body(self, x):\n    assert x.shape[1] == 4\n    return x", space)
    with pytest.raises(AssertionError, match=r"^a check in body\(\) of the traced model does not hold$"):
        traced(Asks(space["body"]).eval())(torch.zeros(1, 3, 2, 2))


def test_a_trace_is_an_ordinary_graph_module() -> None:
    trace = traced(Asks(branches_on_a_parameter).eval())
    data = pickle.dumps(traced(nn.Sequential(nn.ReLU())))
    assert b"reparam_compiler" not in data
    assert trace.graph._tracer_cls is fx.Tracer
    assert type(pickle.loads(data)).__mro__[1] is fx.GraphModule


def test_fixed_arguments_are_fixed() -> None:
    class Shifts(nn.Module):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return x if shift is None else x + shift

    trace = traced(Shifts(), {"shift": None})
    x = normal(2, 3)
    assert torch.equal(trace(x), x)


def branches_on_the_input(m: Asks, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def branches_on_a_size(m: Asks, x: Tensor) -> Tensor:
    return x if x.shape[1] == m.channels else -x


def branches_on_both(m: Asks, x: Tensor) -> Tensor:
    return x if x.sum() > m.alpha else -x


def raises_and_catches(m: Asks, x: Tensor) -> Tensor:
    try:
        if x.shape[1] != m.channels:
            raise ValueError("channels")
    except ValueError:
        return -x
    return x


def raises_where_it_may(m: Asks, x: Tensor) -> Tensor:
    if x.shape[1] != m.channels:
        if x.shape[2] != m.channels:
            raise ValueError("channels")
        x = x + 1
    return x


def converts_the_input(m: Asks, x: Tensor) -> Tensor:
    return x * float(x.sum())


def counts_the_input(m: Asks, x: Tensor) -> Tensor:
    return sum((x for _ in range(x.shape[1])), x * len(x))


def cuts_a_table_by_the_input(m: Asks, x: Tensor) -> Tensor:
    return x + m.table[: x.shape[3]]


def writes_to_what_it_asks(m: Asks, x: Tensor) -> Tensor:
    return x if m.alpha.add_(1) > 1 else -x


def asks_a_layer(m: Asks, x: Tensor) -> Tensor:
    return x if m.linear(m.alpha) > 0 else -x


@pytest.mark.parametrize(
    "body",
    [
        branches_on_the_input,
        branches_on_a_size,
        branches_on_both,
        asserts_one_of_two,
        raises_and_catches,
        raises_where_it_may,
        converts_the_input,
        counts_the_input,
        cuts_a_table_by_the_input,
        writes_to_what_it_asks,
        asks_a_layer,
    ],
)
def test_what_cannot_be_answered_is_refused(body: Callable[[Asks, Tensor], Any]) -> None:
    with pytest.raises((TraceError, TypeError), match=r"asked for its value|slice indices"):
        traced(Asks(body).eval())


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x + torch.rand(1),
        lambda m, x: x if torch.rand_like(m.alpha) > 0.5 else -x,
        lambda m, x: x if random.random() > 0.5 else -x,
    ],
)
def test_random_numbers_are_not_frozen(body: Callable[[Asks, Tensor], Any]) -> None:
    with pytest.raises(TraceError, match="draws random numbers"):
        traced(Asks(body).eval())


def chunks_in_a_list(m: Asks, x: Tensor) -> Tensor:
    y = list(x.chunk(2, 1))
    y.extend(part * 2 for part in torch.chunk(y[-1], chunks=1, dim=1))
    return torch.cat(y, 1)


def pieces_of_stated_sizes(m: Asks, x: Tensor) -> Tensor:
    return torch.cat([*x.split([1, 3], 1), *torch.split(x, (3, 1), dim=1), *x.split_with_sizes([2, 2], dim=1)][::-1], 1)


def pieces_of_sections(m: Asks, x: Tensor) -> Tensor:
    pieces = x.tensor_split((1, 2), 1)
    return torch.cat([part for part in pieces if len(pieces) == 3] + [p for p in torch.tensor_split(x, 2, dim=1)], 1)  # noqa: C416


@pytest.mark.parametrize("body", [chunks_in_a_list, pieces_of_stated_sizes, pieces_of_sections])
def test_how_many_tensors_a_call_gives_is_in_its_arguments(body: Callable[[Asks, Tensor], Tensor]) -> None:
    x = normal(2, 4, 3, 2)
    model = Asks(body).eval()
    assert torch.equal(model(x), traced(model)(x))


def test_fewer_chunks_than_were_asked_for_are_an_error_of_the_trace() -> None:
    with pytest.raises(IndexError):
        traced(Asks(chunks_in_a_list).eval())(normal(2, 1, 3, 2))


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: torch.cat(list(x.split(1, 1)), 1),
        lambda m, x: torch.stack([row for row in x]),  # noqa: C416
        lambda m, x: torch.stack(list(x.unbind(1)), 1),
        lambda m, x: torch.cat(list(x.chunk(x.shape[1], 1)), 1),
    ],
)
def test_how_many_there_are_of_what_the_input_decides_is_refused(body: Callable[[Asks, Tensor], Tensor]) -> None:
    with pytest.raises(TraceError, match="asked for its value"):
        traced(Asks(body).eval())


def test_random_numbers_for_the_input_are_traced() -> None:
    assert traced(Asks(lambda m, x: x + torch.rand_like(x)).eval()).graph.find_nodes(op="call_function", target=torch.rand_like)


def test_a_parameter_that_is_written_to_freezes_nothing() -> None:
    def body(m: Asks, x: Tensor) -> Tensor:
        y = x + 1 if m.alpha > 0 else x
        m.alpha.add_(-1)
        return y

    with pytest.raises(TraceError, match="writes to its own parameters at add_"):
        traced(Asks(body).eval())


@fx.wrap
def scale_(w: Tensor) -> Tensor:
    """Of the model's author, who has another use for the underscore."""
    return 2 * w


def test_a_function_of_the_user_s_writes_nothing_whatever_it_is_called() -> None:
    def body(m: Asks, x: Tensor) -> Tensor:
        return x * scale_(m.alpha) if m.alpha > 0 else x

    model, x = Asks(body).eval(), normal(2, 4, 3, 5)
    assert relative_error(model(x), traced(model)(x)) < EXACT


def test_a_write_by_an_argument_of_a_function_freezes_nothing() -> None:
    def body(m: Asks, x: Tensor) -> Tensor:
        y = x + 1 if m.alpha > 0 else x
        torch.relu_(m.alpha)
        return y

    with pytest.raises(TraceError, match="writes to its own parameters at relu_"):
        traced(Asks(body).eval())


def test_nothing_is_frozen_in_training_mode() -> None:
    with pytest.raises(TraceError, match=r"training mode; call model.eval\(\) first"):
        traced(Asks(branches_on_a_parameter).train())


def test_sizes_that_torch_asks_for_are_recorded() -> None:
    trace = traced(Asks(lambda m, x: x + torch.zeros(x.shape[3], dtype=x.dtype)).eval())
    for width in (5, 7):
        x = normal(2, 4, 3, width)
        assert torch.equal(trace(x), x)
