"""Layers that TVM refuses in some settings, orders, and tensors made of numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from tests.support.compiled_functions import SideBySide, differing

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


@torch.library.custom_op("reparam_tests::roi_align", mutates_args=())
def roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Of a ramp along x alone: the mean over a cell is what stands at its centre."""
    left, right = ((rois[:, index] * spatial_scale - 0.5 * aligned)[:, None] for index in (1, 3))
    centres = left + (right - left) * (torch.arange(pooled_width) + 0.5) / pooled_width
    return centres[:, None, None].repeat(1, input.shape[1], pooled_height, 1)


@roi_align.register_fake
def _(input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, ratio: int, aligned: bool) -> Tensor:
    return input.new_empty(len(rois), input.shape[1], height, width)


def test_boxes_lose_half_a_pixel_behind_their_scale() -> None:
    boxes = torch.tensor([[0.0, 4, 4, 20, 16]])
    functions = {aligned: lambda x, b, a=aligned: roi_align(x, b, 0.5, 2, 3, 2, a) for aligned in (False, True)}
    ramp = torch.arange(12.0).expand(1, 2, 9, 12).contiguous()
    assert differing({str(aligned): function for aligned, function in functions.items()}, ramp, boxes) == []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + torch.randn_like(x), r"randn_like.*found numbers drawn at random at each run; give them"),
        (lambda x: F.dropout(x, 0.5, training=True), r"dropout.*found a dropout in training mode; call model\.eval"),
    ],
)
def test_chance_is_refused(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        lowering.compile(SideBySide({"y": function}).eval(), torch.randn(2, 3))


def test_what_is_drawn_in_training_alone_is_not_drawn() -> None:
    functions = {"rrelu": lambda x: F.rrelu(x, 0.2, 0.4), "dropout": lambda x: F.dropout(x + 1, training=False)}
    assert differing(functions, torch.randn(2, 3)) == []
