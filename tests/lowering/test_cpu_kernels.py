"""Weights are packed as the CPU's kernels read them, and each layer takes an algorithm that is exact enough."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("tvm")

from tvm import tirx

from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Direct
from reparam_compiler.lowering.conv.choice import candidates
from reparam_compiler.lowering.cpu.kernels import convs_to_kernels, output_size, packed_weights, packing_of
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.packing import PACKINGS, narrowed, pack_channels
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.conv_sites import ALGORITHM
from reparam_compiler.lowering.relax.layout import channels_last, simplify
from reparam_compiler.lowering.runtime.stored import Packing

pytestmark = pytest.mark.tvm
AVX2 = VectorUnit(32, 16, 2)
SHAPE = ConvShape(2, 14, 13, 24, 20, (3, 3), padding=(1, 1, 1, 1), groups=2)


def algorithms(model: nn.Module, x: torch.Tensor, **settings: Any) -> list[str]:
    module = convs_to_kernels(channels_last(simplify(to_relax(model.eval(), x).module)), AVX2, **settings)
    kernels = [func for _, func in module.functions_items() if isinstance(func, tirx.PrimFunc)]
    return sorted(str(func.attrs[ALGORITHM]) for func in kernels)


@pytest.mark.parametrize("algorithm", candidates(SHAPE, AVX2), ids=str)
def test_packed_weights_and_outputs_hold_every_channel(algorithm: Algorithm) -> None:
    weight = np.random.default_rng(0).standard_normal((20, 3, 3, 12)).astype("float32")
    packed = packed_weights(weight, SHAPE, algorithm)
    kept = json.loads(json.dumps(asdict(packing_of(SHAPE, algorithm))))  # as an artifact keeps it
    np.testing.assert_array_equal(Packing(**kept).of(weight, PACKINGS), packed)
    assert packed.dtype == np.float32
    assert packed.flags.c_contiguous
    assert packed.shape[-1] == algorithm.tile.columns
    assert packed.shape[-2] == 12
    assert np.prod(output_size(SHAPE, algorithm)) == 2 * 14 * 13 * 20


@pytest.mark.parametrize("algorithm", candidates(SHAPE, AVX2), ids=str)
def test_weights_that_are_half_are_stored_so_and_packed_to_the_same_bits(algorithm: Algorithm) -> None:
    weight = np.random.default_rng(0).standard_normal((20, 3, 3, 12)) * 2.0 ** -np.arange(20).reshape(-1, 1, 1, 1)
    half, packing = (
        weight.astype("float16"),
        packing_of(SHAPE, algorithm),
    )  # its last channels are below float16's normal numbers
    stored, widening = narrowed(half.astype("float32"), packing)
    assert (stored.dtype, widening.arguments) == (np.float16, packing.arguments)
    np.testing.assert_array_equal(widening.of(stored, PACKINGS), packing.of(half.astype("float32"), PACKINGS), strict=True)


@given(
    st.integers(0, 19),
    st.sampled_from([1 / 3, 65520.0, 2.0**-25, np.inf, -np.inf, np.nan, -0.0, 65504.0]),
    st.sampled_from(["float32", "float64"]),
)
def test_a_weight_is_narrowed_only_where_that_loses_nothing(place: int, value: float, dtype: str) -> None:
    weight = np.full((20, 1, 1, 2), 0.5, dtype)
    weight[place, 0, 0, 1] = value
    packing = Packing("columns", {"groups": 1, "columns": 8})
    stored, found = narrowed(weight, packing)
    if dtype == "float32" and value in (np.inf, -np.inf, -0.0, 65504.0):
        assert stored.dtype == np.float16
        assert stored.astype(dtype).tobytes() == weight.tobytes()
    else:
        assert (stored is weight, found is packing) == (True, True)


def test_depthwise_weights_are_padded_to_whole_vectors() -> None:
    weight = np.arange(13 * 9, dtype="float32").reshape(13, 3, 3, 1)
    packed = pack_channels(weight, columns=16)
    assert packed.shape == (3, 3, 16)
    np.testing.assert_array_equal(packed[1, 2, :13], weight[:, 1, 2, 0])
    assert not packed[..., 13:].any()


def test_each_kind_of_layer_has_its_algorithm() -> None:
    layers = [nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1)]
    found = algorithms(nn.Sequential(*layers), torch.zeros(1, 32, 28, 28))
    assert found[:2] == ["depthwise", "gemm"]
    assert found[2].startswith("winograd")


def test_a_rule_s_first_algorithm_within_the_bound_is_taken() -> None:
    def widest_first(shape: ConvShape, unit: VectorUnit) -> Sequence[Algorithm]:
        return sorted(candidates(shape, unit), key=lambda each: isinstance(each, Direct) or -each.outputs[0])

    torch.manual_seed(0)
    model, x = nn.Conv2d(32, 32, 3, padding=1), torch.zeros(1, 32, 28, 28)
    assert algorithms(model, x, rule=widest_first) == ["winograd 6x6"]
    assert algorithms(model, x, rule=widest_first, max_error=2e-6) != ["winograd 6x6"]
    assert algorithms(model, x, rule=widest_first, max_error=0.0) == ["direct"]
