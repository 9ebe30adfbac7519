"""Pools in ceil mode, with divisors, with indices, to given sizes; reductions and their places."""

import pytest
import torch
from torch.nn import functional as F

from tests.support.compiled_functions import differing

pytestmark = pytest.mark.tvm


def test_averages_divide_by_what_torch_divides_by() -> None:
    functions = {
        "divisor": lambda x: F.avg_pool2d(x, 3, 2, divisor_override=4),
        "divisor, ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=5),
        "ceil": lambda x: F.avg_pool2d(x, (2, 3), 2, 1, ceil_mode=True),
        "ceil, padding not counted": lambda x: F.avg_pool2d(x, 3, (2, 3), 1, ceil_mode=True, count_include_pad=False),
        "padding not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        "without a batch": lambda x: F.avg_pool2d(x[0], 3, 2, ceil_mode=True),
    }
    assert differing(functions, torch.randn(1, 2, 8, 12)) == []


def test_largest_elements_come_with_their_places() -> None:
    functions = {
        "indices": lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True),
        "ceil": lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True),
        "to a size": lambda x: F.adaptive_max_pool2d(x, (3, 5), return_indices=True),
        "of volumes": lambda x: F.max_pool3d(x[None], 2, return_indices=True),
        "first of equals": lambda x: F.max_pool2d(x.round(), 2, return_indices=True)[1],
    }
    assert differing(functions, torch.randn(1, 2, 8, 11)) == []


def test_reductions_are_those_of_torch() -> None:
    functions = {
        "amax": lambda x: x.amax((0, -1)),
        "min": lambda x: torch.min(x.round(), 1),
        "max": lambda x: torch.max(x.round(), -1, keepdim=True),
        "prod": lambda x: x.prod(1),
        "logsumexp": lambda x: torch.logsumexp(300 * x, 1),
        "var_mean": lambda x: torch.var_mean(x, 1),
        "var": lambda x: torch.var(x, dim=(1, 2), correction=2),
        "any": lambda x: torch.any(x.round(), 1),
        "all": lambda x: torch.all(x > -1, -1),
        "norm 0": lambda x: torch.linalg.vector_norm(x.round(), 0, dim=1),
        "norm 3": lambda x: torch.linalg.vector_norm(x, 3, dim=1),
    }
    assert differing(functions, torch.randn(3, 4, 5)) == []
