"""Elements read and written by indices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from tests.support.compiled_functions import SideBySide, differing

pytestmark = pytest.mark.tvm
ROWS, COLUMNS = torch.tensor([0, 3, 1]), torch.tensor([2, -1, 4])


def test_indices_are_paired_as_in_torch() -> None:
    functions = {
        "pairs": lambda x, i, j: x[i, j],
        "a grid": lambda x, i, j: x[i[:, None], j],
        "behind": lambda x, i, j: x[:, i, j - 2],
        "apart": lambda x, i, j: x[i, :, j - 2],
        "negative": lambda x, i, j: x[:, j],
        "windows": lambda x, i, j: x.unfold(1, 3, 2),
        "strides": lambda x, i, j: x.flatten().as_strided((5, 3), (2, 1), 1),
        "flat": lambda x, i, j: x.take(j),
        "samples": lambda x, i, j: F.grid_sample(x[None, None, 0], x[None, :2, :, :2].tanh(), align_corners=False),
    }
    assert differing(functions, torch.randn(4, 5, 5), ROWS, COLUMNS) == []


def written(x: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    y = x.clone()
    y[rows, 1] = 5.0
    y[mask] = 3.0
    y[:, ::2] = 0
    return y


def weighed_bags(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    ends = torch.tensor([0, 3, 5])
    return F.embedding_bag(index, x, ends, mode="sum", per_sample_weights=weights, include_last_offset=True)


def test_elements_are_written_as_in_torch() -> None:
    index, values = torch.tensor([[0, 2, 1, 0, 1], [1, 2, 0, 0, 3]]), torch.randn(3, 5)
    functions: dict[str, Callable[..., Tensor]] = {
        "scatter_add": lambda x, i: x.scatter_add(0, i, values),
        "scatter": lambda x, i: x.scatter(1, i, 7.0),
        "amax": lambda x, i: x.scatter_reduce(0, i, values, "amax"),
        "mean": lambda x, i: x.scatter_reduce(0, i, values, "mean"),
        "afresh": lambda x, i: x.scatter_reduce(0, i, values, "prod", include_self=False),
        "index_add": lambda x, i: x.index_add(0, i[0, :3], values, alpha=2),
        "index_copy": lambda x, i: x.index_copy(0, i[0, :3], values),
        "accumulate": lambda x, i: x.index_put((i[:, 0], i[:, 0]), values[0, 0], accumulate=True),
        "in place": lambda x, i: written(x, i[0, :3], x > 0.5),
        "fold": lambda x, i: F.fold(x[None, :, :4], (3, 3), 2),
        "by a mask, in order": lambda x, i: x.masked_scatter(x[:, :1] > 0, values.repeat(2, 1)),
        "a diagonal": lambda x, i: torch.diagonal_scatter(x, values[0, :4]),
        "one above it": lambda x, i: torch.diagonal_scatter(x[None], values[:1, :3], 2, 1, 2),
        "one below it": lambda x, i: torch.diagonal_scatter(x, values[1, :3], -1),
        "bags, one empty": lambda x, i: F.embedding_bag(i[1], x, torch.tensor([0, 2, 2]), mode="mean"),
        "bags, weighed": lambda x, i: weighed_bags(x, i[1], values[0]),
    }
    assert differing(functions, torch.randn(4, 5), index) == []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[x > 0], r"a mask, which gives as many elements as it has ones; keep the size fixed"),
        (lambda x: x.t().as_strided((2, 2), (1, 2)), r"as_strided.*strides over a tensor that is moved in memory"),
        (
            lambda x: F.embedding_bag(COLUMNS % 3, x, ROWS[:1], mode="max"),
            r"the largest of each bag; compute it by an Embedding",
        ),
    ],
)
def test_what_is_not_computed_is_refused_with_a_cure(function: Callable[[Tensor], Tensor], message: str) -> None:
    module: nn.Module = SideBySide({"y": function}).eval()
    with pytest.raises(LoweringError, match=message):
        lowering.compile(module, torch.randn(3, 4))
