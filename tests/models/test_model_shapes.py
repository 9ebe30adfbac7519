"""How command lines state shapes: what the two parsers accepted that there were once, this one accepts."""

import pytest

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.models.shapes import numbers, parse_shapes
from tests.support.loaded_packages import loaded


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("x:[1,3,224,224]", {"x": (1, 3, 224, 224)}),
        ("x:[1,3] y:[1]", {"x": (1, 3), "y": (1,)}),
        ("x:[1, 3],\n mask : [7]", {"x": (1, 3), "mask": (7,)}),
        ("x:[1],,y:[2]", {"x": (1,), "y": (2,)}),  # of the reparam command alone, by these names
        ("in:0:[1, 3] mask:[7],s:[]", {"in:0": (1, 3), "mask": (7,), "s": ()}),  # from here on of tvmc alone
        ("x:[1,3]y:[2]", {"x": (1, 3), "y": (2,)}),
        ("a,b:[1]", {"a,b": (1,)}),
        (":x:[1] ,", {":x": (1,)}),
        ("x:[1] x:[2]", {"x": (2,)}),
        (" ", {}),
        (" [1,3] ", {"": (1, 3)}),
        ("[]", {"": ()}),
    ],
)
def test_shapes_are_read_by_name(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assert parse_shapes(text) == shapes


@pytest.mark.parametrize(
    "text",
    ["x=3", "x", "x:3", "x:[0]", "x:[-1]", "x:[1,]", "x:[,]", "x:[?]", "x:[1]:[2]", "x:[.5]", "[1] y:[2]", "[0]", "[1][2]"],
)
def test_what_states_no_shapes_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot read the input shapes .*; expected 'x:\[1,3,224,224\]'"):
        parse_shapes(text)


def test_an_open_size_is_a_name_and_refused_where_numbers_are_needed() -> None:
    shapes = parse_shapes("x:[1] y:[1, batch,N]")
    assert shapes == {"x": (1,), "y": (1, "batch", "N")}
    with pytest.raises(UnsupportedModelError, match=r"found the open size batch in 'x:.*'; so it is: give a"):
        numbers(shapes, "so it is")


def test_reading_shapes_loads_neither_torch_nor_numpy() -> None:
    assert not loaded("the words of shapes") & {"torch", "numpy", "onnx"}
