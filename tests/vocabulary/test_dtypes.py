"""The one table of dtypes agrees with numpy, torch and ONNX."""

import numpy as np
import onnx
import pytest
import torch

from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING, DType


@pytest.mark.parametrize("row", DTYPES.values(), ids=DTYPES)
def test_a_row_is_what_the_frameworks_call_it(row: DType) -> None:
    dtype = getattr(torch, row.name)
    assert dtype.itemsize == row.bytes == row.numpy.itemsize
    assert onnx.helper.tensor_dtype_to_np_dtype(row.onnx) == row.numpy
    assert (
        dtype.is_floating_point
        == (row.word in FLOATING)
        == onnx.helper.tensor_dtype_to_string(row.onnx).endswith(("FLOAT", "DOUBLE", "FLOAT16"))
    )


@pytest.mark.parametrize("row", FLOATING.values(), ids=FLOATING)
def test_eps_is_the_distance_from_one_to_the_next_number(row: DType) -> None:
    assert row.eps == torch.finfo(getattr(torch, row.name)).eps
    assert np.ones((), row.numpy) + np.asarray(row.eps, row.numpy) > 1


@pytest.mark.parametrize("row", FLOATING.values(), ids=FLOATING)
def test_span_is_from_the_smallest_number_above_zero_to_the_largest(row: DType) -> None:
    smallest, largest = row.span
    assert largest == torch.finfo(getattr(torch, row.name)).max
    assert np.asarray(smallest, row.numpy) > 0 == np.asarray(smallest / 2, row.numpy)


def test_floating_dtypes_come_the_finest_first_and_whole_numbers_have_no_eps() -> None:
    assert list(FLOATING) == ["f64", "f32", "f16", "bf16"]
    with pytest.raises(ValueError, match="i64 has no eps"):
        _ = DTYPES["i64"].eps
