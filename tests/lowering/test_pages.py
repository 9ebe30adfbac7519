"""Weights in shared mappings: the same elements, at addresses that kernels may read, for as long as anybody holds one."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from reparam_compiler.lowering.runtime.pages import MAPPING, Pages
from reparam_compiler.lowering.runtime.stored import ALIGNMENT

pytestmark = pytest.mark.tvm

DTYPES = ("float32", "float16", "int8", "int64")


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=20)  # a mapping each: what is fragmented takes the system seconds to find large pages in
def test_tensors_of_any_shape_and_dtype_hold_the_elements_and_do_not_overlap(kinds: list[tuple[str, tuple[int, ...]]]) -> None:
    pages, random = Pages(), np.random.default_rng(0)
    arrays = [random.integers(-100, 100, shape).astype(dtype) for dtype, shape in kinds]
    tensors = [pages.tensor(array) for array in arrays]
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.data_ptr() % ALIGNMENT == 0


def test_a_tensor_outlives_what_placed_it_and_its_neighbours() -> None:
    pages = Pages()
    kept, _ = pages.tensor(np.arange(1000)), pages.tensor(np.zeros(1000))
    del pages, _
    gc.collect()
    np.testing.assert_array_equal(kept.numpy(), np.arange(1000))


def test_what_is_larger_than_a_mapping_has_its_own() -> None:
    pages = Pages()
    first, large, last = (
        pages.tensor(np.ones(3)),
        pages.tensor(np.full(MAPPING + 5, 7, np.uint8)),
        pages.tensor(np.full(3, 2.0)),
    )
    assert (first.numpy() == 1).all()
    assert (large.numpy() == 7).all()
    assert (last.numpy() == 2).all()


def test_many_threads_may_ask_at_once() -> None:
    pages = Pages()
    arrays = [np.full(1000 + index, index, np.int32) for index in range(400)]
    with ThreadPoolExecutor(8) as pool:
        tensors = list(pool.map(pages.tensor, arrays))
    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_without_large_pages_the_elements_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("mmap.MADV_HUGEPAGE", raising=False)
    np.testing.assert_array_equal(Pages().tensor(np.arange(7)).numpy(), np.arange(7))
