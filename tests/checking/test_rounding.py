"""A difference is held against a result unless the model itself moves by as much when its weights are rounded."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from reparam_compiler.checking.rounding import as_near, explained, largest_difference
from reparam_compiler.checking.tolerances import MARGIN, NUDGES
from reparam_compiler.errors import UnsupportedModelError


class Moves:
    """A runner whose outputs move by so much when its weights are, in the shape that it then gives."""

    name = runtime = ""
    stored = computed = "f32"

    def __init__(self, by: Sequence[float], size: int = 3) -> None:
        self.by, self.size, self.seed = by, size, 0

    def nudged(self, seed: int = 0) -> "Moves":
        self.seed = seed
        return self

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        if self.seed >= len(self.by):
            raise UnsupportedModelError("it does not run")
        return {"": torch.ones(self.size) + self.by[self.seed]}


EXPECTED = {"": torch.ones(3)}


@pytest.mark.parametrize(
    ("by", "apart", "expected"),
    [
        ([0.01] * NUDGES, 0.9 * MARGIN * 0.01, True),
        ([0.01] * NUDGES, 1.1 * MARGIN * 0.01, False),
        ([0.0, 0.0, 0.01], 0.02, True),
        ([0.0] * NUDGES, 1e-3, False),
        ([], 1e-3, False),
        ([float("nan")] * NUDGES, 0.5, True),
    ],
)
def test_a_difference_is_explained_by_one_of_as_much(by: list[float], apart: float, expected: bool) -> None:
    assert explained(EXPECTED, {"": torch.ones(3) + apart}, lambda: Moves(by), ()) == expected


def test_another_shape_is_explained_by_another_shape_only() -> None:
    found = {"": torch.ones(4)}
    assert not explained(EXPECTED, found, lambda: Moves([float("nan")] * NUDGES), ())
    assert explained(EXPECTED, found, lambda: Moves([0.0] * NUDGES, size=2), ())
    assert explained(EXPECTED, {"": torch.zeros(3)}, lambda: Moves([0.0] * NUDGES, size=2), ())


def test_another_number_of_outputs_is_infinitely_far() -> None:
    assert largest_difference(EXPECTED, {}).relative == float("inf")
    assert largest_difference({}, {}).relative == 0


@pytest.mark.parametrize(
    ("apart", "own", "expected"),
    [
        (0.9 * MARGIN * 1e-7, 1e-7, True),
        (1.1 * MARGIN * 1e-7, 1e-7, False),
        (0.0, 0.0, True),
        (1e-9, 0.0, False),
        (float("nan"), float("nan"), False),
    ],
)
def test_what_is_written_may_be_as_far_from_its_graph_as_the_model_is(apart: float, own: float, expected: bool) -> None:
    tiny, one = {"": torch.full((3,), 1e-9).double()}, {"": torch.ones(3).double()}
    assert as_near(tiny, {"": tiny[""] + apart}, one, {"": one[""] + own}) == expected
    assert not as_near(tiny, tiny | {"more": tiny[""]}, one, one)
