"""Phases of positions joined as channels, and the conv that reads them, are one conv of as many times the stride."""

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.core import affine
from reparam_compiler.core.kernel import NotFusable, compose, concat, pad, subsample
from reparam_compiler.cost.model import work
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param
from tests.support.operators import run as run_kernel
from tests.support.small_models import EXACT, KINDS, Kind, fuse_in_float64, normal, randomised

PHASES = ((0, 0), (1, 0), (0, 1), (1, 1))


class Focus(nn.Module):
    """YOLOv5's stem: four slices of every other row and column, joined in some order, and a conv."""

    def __init__(self, join: Callable[[Tensor], Tensor], conv: nn.Conv2d) -> None:
        super().__init__()
        self.join, self.conv, self.norm = join, conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(self.join(x))))


def sliced(order: Sequence[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([x[..., down::2, across::2] for down, across in order], 1)


def focus(join: Callable[[Tensor], Tensor], channels: int = 3, **conv: int) -> Focus:
    return randomised(Focus(join, nn.Conv2d(4 * channels, 8, **{"kernel_size": 3, "padding": 1, "bias": False} | conv)))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("order", list(permutations(PHASES))[::5])
def test_slices_in_every_order_are_one_strided_conv(order: Sequence[tuple[int, int]]) -> None:
    fused = fuse_in_float64(focus(sliced(order)), normal(2, 3, 12, 10))
    assert fused.error < EXACT
    (fusion,) = fused.report.fusions
    assert (fusion.op, fusion.weight) == ("conv stride=2 pad=2", (8, 3, 6, 6))
    assert not fused.report.refusals


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("join", [sliced(PHASES), lambda x: F.pixel_unshuffle(x, 2)])
def test_every_kind_and_spelling(join: Callable[[Tensor], Tensor], kind: Kind) -> None:
    fused = fuse_in_float64(focus(join, kernel_size=1, padding=0), normal(2, 3, 12, 10), kind=kind, shapes=True)
    assert fused.error < EXACT
    assert [fusion.op for fusion in fused.report.fusions] == ["conv stride=2"]


@settings(max_examples=settings.default.max_examples // 5)
@given(
    size=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    groups=st.sampled_from([1, 3]),
    factor=st.integers(1, 3),
)
def test_pixel_unshuffle_and_a_conv(size: int, stride: int, padding: int, groups: int, factor: int) -> None:
    conv = nn.Conv2d(3 * factor**2, 6, size, stride, padding, groups=groups)
    model = randomised(nn.Sequential(nn.PixelUnshuffle(factor), conv, nn.BatchNorm2d(6), nn.ReLU()))
    fused = fuse_in_float64(model, normal(2, 3, 12 * factor, 5 * factor))
    assert fused.error < EXACT
    assert fused.report.fusions


def test_phases_that_are_not_all_there_are_fused_too() -> None:
    fused = fuse_in_float64(focus(sliced([(1, 0), (1, 0), (0, 1), (1, 1)])), normal(2, 3, 12, 10))
    assert fused.error < EXACT
    assert fused.report.fusions[0].op.startswith("conv stride=2")


@pytest.mark.parametrize(
    "join",
    [
        lambda x: torch.cat([x[..., ::2, ::2], x[..., :6, :5], x[..., 1::2, ::2], x[..., 1::2, 1::2]], 1),
        lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2], x[..., ::2, ::2].relu(), x[..., 1::2, ::2]], 1),
        lambda x: torch.cat([x[:, :, ::2, ::2], x.flip(2)[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]], 1),
    ],
)
def test_other_steps_and_what_is_not_linear_stay(join: Callable[[Tensor], Tensor]) -> None:
    fused = fuse_in_float64(focus(join), normal(2, 3, 18, 15)[:, :, :12, :10], shapes=True)
    assert fused.error < EXACT
    assert [fusion.op for fusion in fused.report.fusions] == ["conv pad=1"]  # the norm alone


def test_the_price_of_a_conv_on_phases_is_that_of_the_phases() -> None:
    phases, whole = np.zeros((8, 12, 3, 3)), np.zeros((8, 3, 6, 6))
    on_phases = work(ops.Conv((1, 1), ((1, 1),) * 2, (1, 1)), (_param(phases),), 12 * 64, 8 * 64)
    at_once = work(ops.Conv((2, 2), ((2, 2),) * 2, (1, 1)), (_param(whole),), 3 * 256, 8 * 64)
    assert on_phases == at_once


def _param(array: np.ndarray) -> Param:
    return Param.of(array, role="weight", dtype="f32")


@pytest.mark.parametrize("phases_first", [False, True])
def test_the_operator_is_torchs_in_one_order_and_onnx_s_in_the_other(phases_first: bool) -> None:
    x = normal(2, 3, 6, 4)
    expected = F.pixel_unshuffle(x, 2)
    if phases_first:
        expected = expected.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(run_kernel(affine.space_to_depth(3, 2, 2, phases_first=phases_first), x), expected)


def test_pieces_of_one_stride_that_differ_by_less_than_it_are_joined_and_padded_over() -> None:
    same = affine.identity(2, 1)
    even = subsample(same, (2,))
    odd = subsample(pad(same, ((-1, 0),), same.bias), (2,))
    joined = concat(odd, even)
    x = normal(1, 2, 8)
    assert torch.equal(run_kernel(joined, x), torch.cat([x[..., 1::2], x[..., ::2]], 1))
    assert joined.slack == (1,)
    moved = compose(affine.average_pool(4, (3,), (1,), ((1, 1),)), joined)
    expected = F.avg_pool1d(torch.cat([x[..., 1::2], x[..., ::2]], 1), 3, 1, 1)
    torch.testing.assert_close(run_kernel(moved, x), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(NotFusable, match="branches give different positions"):
        concat(even, subsample(pad(same, ((-2, 0),), same.bias), (2,)))


def test_onnx_space_to_depth_goes_into_its_conv() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 12, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["d"], blocksize=2),
        helper.make_node("Conv", ["d", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "phases",
        [value("x", TensorProto.FLOAT, ["n", 3, "h", "w_"])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fused = reparam_compiler.fuse(given)
    assert [node.op_type for node in fused.graph.node] == ["Conv", "Relu"]
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 6)).astype(np.float32)
    before, after = (onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0] for model in (given, fused))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)  # float32
