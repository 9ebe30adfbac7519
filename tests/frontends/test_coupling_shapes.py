"""Coupling models that follow from shapes, for both frontends, against what torch gives."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam_compiler.frontends import coupling
from reparam_compiler.frontends.base import Unsupported
from reparam_compiler.interpreter.rules import apply
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import TensorType


def test_a_value_of_no_known_shape_has_no_model() -> None:
    assert coupling.shape_of(TensorType("f32", (2, "n"))) == (2, "n")
    with pytest.raises(Unsupported, match="no known shape"):
        coupling.shape_of(None)


def test_a_function_of_elements_keeps_the_slices_along_every_axis() -> None:
    assert coupling.elementwise((2, "n", 3)) == ops.Slicewise((0, 1, 2))
    assert coupling.elementwise(()) == ops.Slicewise(())


@pytest.mark.parametrize(
    ("own", "shape", "found"),
    [
        ((2, 16, 5), (2, 4, 20), (2, 4, 20)),
        (("n", 16, 5), ("n", 80), (0, 80)),
        (("n", 16, "h"), (4, "n"), (4, -1)),
        ((2, 3), (None, 6), (-1, 6)),
        ((None, 3), (None, 3), (-1, 3)),
    ],
)
def test_a_reshape_is_by_numbers_and_at_most_one_size_is_left(own: Any, shape: Any, found: tuple[int, ...]) -> None:
    assert coupling.reshape(own, shape) == ops.Reshape(found)


def test_a_reshape_to_several_open_sizes_has_no_model() -> None:
    with pytest.raises(Unsupported, match="several open sizes"):
        coupling.reshape(("n", 4), ("h", "w"))


def test_an_expansion_keeps_an_open_batch_and_open_sizes_that_are_there() -> None:
    assert coupling.expand((16, 1), (2, 16, 5)) == ops.Expand((2, 16, 5))
    assert coupling.expand(("n", 1, "h"), ("n", 16, "h")) == ops.Expand((-1, 16, -1))
    for own, shape in (((1, 1), (2, "w")), ((4, 1), (2, "n", 4))):
        with pytest.raises(Unsupported, match="open size"):
            coupling.expand(own, shape)


@given(left=st.integers(0, 2), right=st.integers(0, 2))
def test_a_product_of_matrices_is_an_einsum(left: int, right: int) -> None:
    a, b = torch.randn(*(3, 2)[2 - left :], 4, 5), torch.randn(*(3, 2)[2 - right :], 5, 6)
    op = coupling.matmul(a.ndim, b.ndim)
    torch.testing.assert_close(apply(op, (a, b)), a @ b)


@pytest.mark.parametrize("ranks", [(1, 2), (3, 1)])
def test_a_product_with_a_vector_has_no_model(ranks: tuple[int, int]) -> None:
    with pytest.raises(Unsupported, match="vector"):
        coupling.matmul(*ranks)


@pytest.mark.parametrize("equation", ["ij,jk", "ij->ji", "ij,jk,kl->il", "ii,ij->j", "...ij,jk->ik"])
def test_an_equation_without_a_letter_for_each_axis_of_two_values_has_no_model(equation: str) -> None:
    with pytest.raises(Unsupported, match="einsum of"):
        coupling.einsum(equation)
