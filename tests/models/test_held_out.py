"""What is held out and what is fitted to are all of the data, and share nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, TensorType
from reparam_compiler.models.calibration import batches
from reparam_compiler.models.held_out import parts

X, Y = (Node(name, ops.Input(), (), TensorType("f32", ("N", 2))) for name in "xy")


@given(sizes=st.lists(st.integers(4, 40), min_size=1, max_size=20), exact=st.sampled_from([None, 1, 4]))
def test_each_sample_is_in_one_part(sizes: list[int], exact: int | None) -> None:
    whole = np.arange(2 * sum(sizes), dtype=np.float32).reshape(-1, 2)
    data = batches(np.split(whole, np.cumsum(sizes)[:-1]), [X], exact=exact)
    fitted, held_out = ([sample.tobytes() for (batch,) in part for sample in batch] for part in parts(data))
    assert not set(fitted) & set(held_out)
    assert set(fitted) | set(held_out) == {sample.tobytes() for (batch,) in data for sample in batch}
    assert len(held_out) <= len(fitted)
    assert exact is None or {len(batch) for part in parts(data) for (batch,) in part} == {exact}


@pytest.mark.parametrize(("samples", "expected"), [(7, 0), (8, 1), (32, 4), (64, 8), (100, 12)])
def test_an_eighth_is_held_out(samples: int, expected: int) -> None:
    _, held_out = parts(batches(np.zeros((samples, 2), np.float32), [X]))
    assert sum(len(batch) for (batch,) in held_out) == expected


def test_inputs_of_other_lengths_stay_whole() -> None:
    data = batches([(np.zeros((8, 2), np.float32), np.zeros((3, 2), np.float32))] * 9, [X, Y])
    fitted, held_out = ([[len(array) for array in batch] for batch in part] for part in parts(data))
    assert fitted == [[8, 3]] * 8
    assert held_out == [[8, 3]]
