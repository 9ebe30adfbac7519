"""A region without a rule is the convolution that it is, or none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam_compiler.core.kernel import ConvKernel, NotFusable
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate_node
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param, TensorType
from reparam_compiler.passes.fusion import probe
from tests.support.small_models import EXACT, Pieces, fuse_in_float64, normal


def conv_node(kernel: ConvKernel) -> Node:
    op = ops.Conv(kernel.stride, kernel.padding, kernel.dilation, kernel.groups, kernel.mode)
    return Node("y", op, ("x", *(Param.of(a, role="weight", dtype="f64") for a in (kernel.weight, kernel.bias))))


def opaque(function: object, name: str = "roll") -> Node:
    return Node("y", ops.Opaque(name, function), ("x",))  # type: ignore[arg-type]


def identify(*nodes: Node, channels: int = 4, rank: int = 2, known: TensorType | None = None) -> ConvKernel:
    return probe.identify(nodes, "x", channels, rank, known)


@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data(), rank=st.integers(1, 2), groups=st.sampled_from([1, 1, 2, 4]), bias=st.booleans())
def test_a_conv_is_identified_by_its_impulses(data: st.DataObject, rank: int, groups: int, bias: bool) -> None:
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    size, stride, dilation = each(1, 3), each(1, 2), each(1, 2)
    mode = data.draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    spans = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    lows, highs = ([min(n, span) for n, span in zip(each(0, 2), spans, strict=True)] for _ in range(2))
    padding = tuple(zip(lows, highs, strict=True))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    weight = random.standard_normal((4, 4 // groups, *size))
    node = conv_node(ConvKernel(weight, random.standard_normal(4) * bias, stride, dilation, padding, groups, mode))
    found = identify(node, rank=rank)
    for sizes in ((11, 12), (16, 13), (9, 8)):
        x = normal(2, 4, *sizes[:rank])
        expected, same = (evaluate_node(n, {"x": x}) for n in (node, conv_node(found)))
        assert difference(expected, same).relative < EXACT


def test_taps_that_are_zero_are_not_kept() -> None:
    weight = np.zeros((4, 1, 5, 5))
    weight[:, :, ::2, ::2] = np.random.default_rng(0).standard_normal((4, 1, 3, 3))
    found = identify(conv_node(ConvKernel(weight, np.zeros(4), (1, 1), (1, 1), ((2, 2), (2, 2)), 4)))
    assert (found.size, found.dilation, found.groups) == ((3, 3), (2, 2), 4)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.flip(2), "its response does not move along axis 0"),
        (torch.relu, "is not the convolution that its impulse response seems to be"),
        (lambda x: x * torch.arange(x.shape[3]), "its response does not move along axis 1|is not the convolution"),
        (lambda x: x + torch.arange(x.shape[3]), "what it adds differs from position to position"),
        (lambda x: x.mean((2, 3), keepdim=True).expand_as(x), "its response does not move along axis 0"),
        (lambda x: x.repeat_interleave(2, 2), "its response does not move along axis 0"),
        (lambda x: x.flatten(1), "it gives a value of shape"),
        (lambda x: x.sum(0, keepdim=True).expand_as(x), "is not the convolution"),
        (lambda x: x * 0, "it does not depend on its source"),
        (lambda x: x.view(3, 5), "it does not run on its own"),
        (lambda x: (x, x), "it gives several values"),
    ],
)
def test_what_is_no_convolution_is_refused(function: object, reason: str) -> None:
    known = TensorType("f64", (2, 4, 6, 7)) if "convolution" in reason else None
    with pytest.raises(NotFusable, match=reason):
        identify(opaque(function), known=known)


def test_what_would_be_tried_on_too_large_a_source_is_refused() -> None:
    vast = ConvKernel(np.ones((1, 1, 1, 2**17)), np.zeros(1), (2**17, 2**17), (1, 1), ((0, 0), (0, 0)))
    with pytest.raises(NotFusable, match="too large to be drawn"):
        identify(conv_node(vast))


def test_a_region_that_runs_only_on_its_recorded_size_is_probed_there() -> None:
    weight = torch.randn(4, 4, 3, 3, dtype=torch.float64)

    def fixed(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x.reshape(2, 4, 7, 9), weight, padding=1)

    found = identify(opaque(fixed), known=TensorType("f64", (2, 4, 7, 9)))
    assert np.allclose(found.weight, weight.numpy(), rtol=1e-12)  # float64
    assert found.padding == ((1, 1), (1, 1))


def test_of_regions_that_are_alike_one_is_run_to_be_refused() -> None:
    runs = []

    def times(x: Tensor, factors: Tensor) -> Tensor:
        runs.append(x.shape)
        return x * factors

    def identify(factors: np.ndarray, most: int | None = None) -> ConvKernel:
        region = [Node("y", ops.Opaque("times", times), ("x", Param.of(factors, role="const", dtype="f64")))]
        return prober.identify(region, "x", 4, 2, TensorType("f64", (2, 4, 6, 7)), most=most)

    prober, rows = probe.Prober(), np.ones((6, 1))
    rows[4] = 0
    for factors, most, reason, runs_again in (
        (rows, None, "does not move along axis 0", True),
        (rows * 2, None, "does not move along axis 0", False),  # other numbers, zero in the same places
        (rows, 100, "does not move along axis 0", True),
        (rows[::-1], None, "is not the convolution", True),
    ):
        runs.clear()
        with pytest.raises(NotFusable, match=reason):
            identify(factors, most)
        assert bool(runs) is runs_again
    assert identify(np.ones((6, 1))).size == (1, 1)


def test_too_many_channels_to_probe_are_refused() -> None:
    with pytest.raises(NotFusable, match="20000 channels at 7x8 are too many to probe"):
        identify(opaque(lambda x: x), channels=20000)


def test_an_operator_of_more_weights_than_pay_is_not_probed_to_the_end() -> None:
    dense = conv_node(ConvKernel(np.ones((4, 4, 3, 3)), np.zeros(4), (1, 1), (1, 1), ((1, 1), (1, 1))))
    with pytest.raises(NotFusable, match="one conv would have about 144 weights, and be slower"):
        probe.identify([dense], "x", 4, 2, None, most=100)


@pytest.mark.parametrize("kind", ["fx", "export"])
def test_ops_without_a_rule_are_fused_with_their_block(kind: str) -> None:
    """A pointwise conv as a linear layer over the last axis, and a shift round a circular border."""

    def forward(m: Pieces, x: Tensor) -> Tensor:
        mixed = torch.einsum("nchw,oc->nohw", x, m.point.weight[:, :, 0, 0])
        return torch.relu(torch.nn.functional.pad(x, (1, 1, 1, 1), "circular")[:, :, 2:, 1:-1] + mixed.roll(1, -1))

    fused = fuse_in_float64(Pieces(forward), normal(2, 4, 6, 5), kind=kind, shapes=True)  # type: ignore[arg-type]
    assert fused.error < EXACT


def test_the_search_for_a_stride_is_bounded_by_the_elements_that_it_computes() -> None:
    """A waveform: an impulse in each of 22,050 places would be two minutes. One that moves soon enough is found."""
    runs = []

    def turned(x: Tensor) -> Tensor:
        runs.append(x.shape)
        return x.view(2, 1, 22050).flip(2)

    known = TensorType("f64", (2, 1, 22050))
    with pytest.raises(NotFusable, match=r"does not move along axis 0 as an impulse does within \d+ steps, all that are tried"):
        identify(opaque(turned), channels=1, rank=1, known=known)
    assert len(runs) * 2 * 22050 < probe.STRIDES
    weight = np.random.default_rng(0).standard_normal((3, 1, 200))
    framed = conv_node(ConvKernel(weight, np.zeros(3), (100,), (1,), ((0, 0),)))
    assert identify(framed, channels=1, rank=1, known=known).stride == (100,)
