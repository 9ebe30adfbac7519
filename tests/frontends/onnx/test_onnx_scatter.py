"""Where an assignment writes to, from the indices of a ScatterND and back."""

from typing import Any

import numpy as np
import pytest
from onnx import helper

from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.frontends.onnx.ops.scatter import LARGEST_VALUE, written_box
from reparam_compiler.frontends.onnx.spelling import is_stated_anew
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from tests.support.onnx_models import model_of, normal


def read(index: np.ndarray, value: np.ndarray, shape: tuple[int, ...]) -> Graph:
    node = helper.make_node("ScatterND", ["x", "index", "v"], ["y"])
    return OnnxFrontend().read(model_of([node], {"x": shape}, ["y"], {"index": index, "v": value})).graph


@pytest.mark.parametrize(
    ("cuts", "box"),
    [
        ((), (range(5), range(4))),
        (((0, 1, 3),), (range(1, 3), range(4))),
        (((1, -2, None),), (range(5), range(2, 4))),
        (((0, 0, -1), (1, 3, None)), (range(4), range(3, 4))),
    ],
)
def test_the_cuts_of_an_assignment_are_a_box_and_read_back_from_its_places(cuts: Any, box: tuple[range, ...]) -> None:
    op = ops.SliceUpdate(cuts)
    assert written_box(op, (5, 4)) == list(box)
    index = np.stack(np.meshgrid(*map(np.array, box), indexing="ij"), -1)
    found = read(index, normal(*map(len, box)), (5, 4))["y"].op
    assert isinstance(found, ops.SliceUpdate)
    assert written_box(found, (5, 4)) == list(box)


def test_places_are_counted_from_the_nearer_end() -> None:
    index = np.arange(7, 9).reshape(2, 1)
    assert read(index, normal(2, 3), (9, 3))["y"].op == ops.SliceUpdate(((0, -2, None),))
    assert read(index - 6, normal(2, 3), (9, 3))["y"].op == ops.SliceUpdate(((0, 1, 3),))


def test_a_value_that_is_large_or_unlike_along_an_axis_stays_whole_there() -> None:
    index = np.arange(2).reshape(2, 1)
    (value,) = read(index, np.broadcast_to(normal(2, 1), (2, 3)).copy(), (5, 3))["y"].params
    assert value.shape == (2, 1)
    large = np.zeros((2, LARGEST_VALUE // 2 + 1), np.float32)
    (value,) = read(index, large, (5, large.shape[1]))["y"].params
    assert value.shape == large.shape


@pytest.mark.parametrize(
    ("was", "now", "same"),
    [
        (ops.Reshape((2, 16)), ops.Reshape((2, 8)), True),
        (ops.Reshape((2, 16)), ops.Flatten(1, 2), False),
        (ops.Split(1, (8, 8)), ops.Split(1, (4, 8)), True),
        (ops.Split(1, (8, 8)), ops.Split(2, (8, 8)), False),
        (ops.Opaque("A", coupling=ops.Reshape((2, 16))), ops.Opaque("A", coupling=ops.Reshape((2, 8))), True),
        (ops.Opaque("A"), ops.Opaque("B"), False),
        (ops.Elementwise("relu"), ops.Elementwise("relu"), True),
        (ops.Elementwise("relu"), ops.Elementwise("gelu"), False),
    ],
)
def test_a_node_stays_the_models_own_where_only_numbers_that_it_states_differ(was: ops.Op, now: ops.Op, same: bool) -> None:
    assert is_stated_anew(was, now) == same
