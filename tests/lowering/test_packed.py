"""Weights that a pass packs become parameters of the compiled function; every other constant stays where it is."""

import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from tvm import relax
from tvm.ir import GenericConst

from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.packed import lifted, noted
from reparam_compiler.lowering.target import resolve
from tests.support.lowered import lower

pytestmark = pytest.mark.tvm


def test_packed_weights_are_lifted_once_for_all_that_are_equal_and_biases_stay() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        net[0].weight.copy_(net[1].weight)
    with noted() as found:
        module = lower(to_relax(net, torch.zeros(2, 6)).module, resolve(None))
    made, weights = lifted(module, found)
    names = [str(parameter.name) for parameter in made["main"].params]
    assert names[1:] == ["weight_0", "weight_1"]
    assert [weight.stored.shape for weight in weights] == [(6, 1, 1, 6), (3, 1, 1, 6)]
    assert {weight.packing.name for weight in weights} == {"columns"}
    constants: list[int] = []

    def visit(part: object) -> None:
        if isinstance(part, GenericConst):
            constants.append(part.value.numpy().size)

    relax.analysis.post_order_visit(made["main"], visit)
    assert sorted(constants) == [3, 6, 6]


def test_a_module_without_packed_weights_is_left_as_it_is() -> None:
    with noted() as found:
        module = lower(to_relax(nn.ReLU().eval(), torch.zeros(2, 6)).module, resolve(None))
    assert not found
    assert lifted(module, found) == (module, ())


def test_what_nobody_notes_stays_a_constant() -> None:
    module = lower(to_relax(nn.Linear(6, 6).eval(), torch.zeros(2, 6)).module, resolve(None))
    assert len(module["main"].params) == 1
    with noted() as found:
        pass
    assert lifted(module, found)[0] is module
