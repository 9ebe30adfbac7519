"""Layers that TVM refuses in some settings, orders, and tensors made of numbers."""

import pytest
import torch
from torch.nn import functional as F

from tests.support.compiled_functions import differing

pytestmark = pytest.mark.tvm


def test_layers_and_orders_are_those_of_torch() -> None:
    kernel = torch.randn(3, 2, 2, 3, 2)
    functions = {
        "transposed": lambda x: F.conv_transpose3d(x[None, None].repeat(1, 3, 1, 1, 1), kernel, stride=2, output_padding=1),
        "group norm": lambda x: F.group_norm(x, 2),
        "layer norm of doubles": lambda x: F.layer_norm(x.double(), (4, 5)),
        "distances": lambda x: torch.cdist(x, x[:, :3] + 1, p=1.0),
        "k-th": lambda x: torch.kthvalue(x, 2, 1),
        "running": lambda x: torch.cummax(x.round(), 1),
        "running sums": lambda x: torch.logcumsumexp(100 * x, 2),
        "short integers": lambda x: x.int().cumsum(1),
        "searched": lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), x),
        "counted down": lambda x: x + torch.arange(5, 0, -1),
        "joined products": lambda x: torch.addbmm(x[0, :, :4], x, x.mT, beta=0.5, alpha=2),
    }
    assert differing(functions, torch.randn(2, 4, 5)) == []
