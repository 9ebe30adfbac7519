"""A Resize is run axis by axis, and gives what ONNX's reference evaluator does for all of it."""

from typing import Any

import pytest
import torch
from onnx import NodeProto, helper

from reparam_compiler.frontends.onnx.node_runner import runner
from reparam_compiler.frontends.onnx.ops.resampling import resized
from tests.support.onnx_models import model_of, normal

X = torch.from_numpy(normal(2, 3, 4, 5)).double()
MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def node_of(kind: str = "Resize", names: tuple[str, ...] = ("x", "", "scales"), **attributes: Any) -> NodeProto:
    return helper.make_node(kind, names, ["y"], **attributes)


def both(node: NodeProto, given: tuple[torch.Tensor | None, ...], opset: int = 17) -> tuple[Any, Any, list[int]]:
    """What comes out, what the evaluator gives, and of how many elements it was asked for at a time."""
    names = list(node.input)
    whole = runner(model_of([node], {"x": (2, 3, 4, 5)}, ["y"], opset=opset), node, names, {}, 1)
    asked: list[int] = []

    def counted(x: torch.Tensor, *rest: Any) -> Any:
        asked.append(x.numel())
        return whole(x, *rest)

    return resized(counted, node, opset)(X, *given), whole(X, *given), asked


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2.0, 3.0), (0.5, 1.6)])
def test_each_mode_goes_along_each_axis(mode: str, how: str, scales: tuple[float, float]) -> None:
    node = node_of(mode=mode, coordinate_transformation_mode=how)
    found, expected, asked = both(node, (None, torch.tensor([1.0, 1.0, *scales])))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert asked == [4, 5]


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_each_rounding_of_nearest_and_sizes_in_numbers(rounding: str) -> None:
    node = node_of(names=("x", "", "", "sizes"), mode="nearest", nearest_mode=rounding)
    found, expected, asked = both(node, (None, None, torch.tensor([2, 3, 7, 9])))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert asked == [4, 5]


def test_sizes_say_nothing_of_batch_and_channels() -> None:
    node = node_of(names=("x", "", "", "sizes"), mode="nearest")
    run = resized(runner(model_of([node], {"x": (2, 3, 4, 5)}, ["y"]), node, list(node.input), {}, 1), node, 17)
    assert run(X, None, None, torch.tensor([1, 64, 8, 10])).shape == (2, 3, 8, 10)


def test_older_spellings() -> None:
    upsample = node_of("Upsample", ("x", "scales"), mode="nearest")
    found, expected, asked = both(upsample, (torch.tensor([1.0, 1.0, 2.0, 2.0]),), 9)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert asked == [4, 5]


@pytest.mark.parametrize(
    ("attributes", "scales"),
    [
        ({"mode": "cubic"}, (1.0, 1.0, 2.0, 2.0)),
        ({"mode": "linear", "antialias": 1}, (1.0, 1.0, 0.5, 0.5)),
        ({}, (1.0, 2.0, 1.0, 1.0)),
    ],
)
def test_what_reads_more_than_two_neighbours_or_resizes_channels_is_left_to_the_evaluator(
    attributes: dict[str, Any], scales: tuple[float, ...]
) -> None:
    found, expected, asked = both(node_of(**attributes), (None, torch.tensor(scales)), 18)
    torch.testing.assert_close(found, expected)
    assert asked == [X.numel()]


def test_floats_keep_their_dtype_and_whole_numbers_are_left_to_the_evaluator() -> None:
    node = node_of(mode="nearest")
    run = resized(runner(model_of([node], {"x": (2, 3, 4, 5)}, ["y"]), node, list(node.input), {}, 1), node, 17)
    scales = torch.tensor([1.0, 1.0, 2.0, 2.0])
    for x in (X.float(), torch.arange(120).reshape(2, 3, 4, 5)):
        found = run(x, None, scales)
        torch.testing.assert_close(found, x.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=0, atol=0)
        assert found.dtype == x.dtype
