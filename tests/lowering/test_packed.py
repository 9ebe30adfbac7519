"""Weights that a pass packs, and large tables, become parameters of the compiled function; the rest stays where it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from tvm import relax
from tvm.ir import GenericConst

from reparam_compiler import lowering
from reparam_compiler.lowering.build import Form, compile_forms
from reparam_compiler.lowering.cpu.backend import CpuBackend
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.packed import lifted, noted
from reparam_compiler.lowering.runtime.weights import Store
from reparam_compiler.lowering.target import resolve
from tests.support.lowered import lower

pytestmark = pytest.mark.tvm
LARGE = CpuBackend.weights_from


def test_packed_weights_are_lifted_once_for_all_that_are_equal_and_biases_stay() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        net[0].weight.copy_(net[1].weight)
    with noted() as found:
        module = lower(to_relax(net, torch.zeros(2, 6)).module, resolve(None))
    made, weights = lifted(module, found, Store(), LARGE)
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
    assert lifted(module, found, Store(), LARGE) == (module, ())


class Looked(nn.Module):
    """A table of embeddings, and a dense layer."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.dense = nn.Embedding(rows, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.table(x))


@pytest.mark.parametrize("rows", [7, 2000])
def test_a_large_table_is_stored_once_for_all_batches_and_a_small_one_stays(rows: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Looked(rows).eval()
    inputs = [torch.arange(batch * 5).reshape(batch, 5) % rows for batch in (1, 3)]
    made = compile_forms([Form(net, x) for x in inputs], any_batch=True)
    shapes = [[weight.stored.shape for weight in variant.weights] for variant in made.variants]
    assert shapes == [[(rows, 16)] * (rows > 7) + [(3, 1, 1, 16)]] * 2
    assert all(left is right for left, right in zip(*(variant.weights for variant in made.variants), strict=True))
    made.save(tmp_path / "m.tar")
    made.save(tmp_path / "m.so")
    for name in ("m.tar", "m.so"):
        for x in inputs:
            found = lowering.load(tmp_path / name).run(x)[0]
            np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_nobody_notes_stays_a_constant() -> None:
    module = lower(to_relax(nn.Linear(6, 6).eval(), torch.zeros(2, 6)).module, resolve(None))
    assert len(module["main"].params) == 1
    with noted() as found:
        pass
    assert lifted(module, found, Store(), LARGE)[0] is module


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(300, 300, dtype=torch.bool).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(self.mask, 0.5)


def test_a_large_mask_is_a_weight_too(tmp_path: Path) -> None:
    model, x = Masked().eval(), torch.randn(300, 300)
    made = lowering.compile(model, x)
    assert [weight.dtype for weight in made.variants[0].weights] == ["bool"]
    for name in ("m.tar", "m.so"):
        made.save(tmp_path / name)
        np.testing.assert_array_equal(lowering.load(tmp_path / name).run(x)[0], model(x).numpy())
