"""How the attributes of an op are shown: those that say something, as short as they are unambiguous."""

import pytest

from reparam_compiler.ir import ops
from reparam_compiler.ir.attributes import attributes

NO_PADDING = ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("op", "shown"),
    [
        (ops.Conv((1, 1), NO_PADDING, (1, 1)), {}),
        (ops.Conv((2, 2), ((1, 1), (1, 1)), (1, 1), 4), {"stride": 2, "pad": 1, "groups": 4}),
        (
            ops.Conv((2, 1), ((0, 0), (1, 1)), (1, 3), mode="reflect"),
            {"stride": "2,1", "pad": "0,1", "dilation": "1,3", "mode": "reflect"},
        ),
        (ops.Conv((1, 1), ((0, 1), (0, 1)), (1, 1)), {"pad": "0:1"}),
        (ops.ConvTranspose((2,), ((0, 0),), (1,), (1,)), {"stride": 2, "output_padding": 1}),
        (ops.Add((1.0, 1.0, 1.0)), {}),
        (ops.Add((1.0, -1.0)), {}),
        (ops.Add((1.0, 0.5)), {"coefficients": "1.0,0.5"}),
        (ops.Elementwise("clamp", (0.0, 6.0)), {"arguments": "0.0,6.0"}),
        (ops.Reduce("mean", (2, 3), True), {"axes": "2,3", "keepdim": True}),
        (ops.Opaque("mine::scale", arguments={"factor": 2}), {}),
        (ops.BatchNorm(), {}),
        (ops.BatchNorm(1e-3), {"eps": 1e-3}),
    ],
)
def test_what_is_default_or_in_the_name_is_not_shown(op: ops.Op, shown: dict[str, object]) -> None:
    found = attributes(op)
    assert {key: str(value) for key, value in found.items()} == {key: str(value) for key, value in shown.items()}


def test_two_ops_that_differ_are_shown_differently() -> None:
    convs = [
        ops.Conv((1, 1), padding, (1, 1)) for padding in (NO_PADDING, ((0, 1), (0, 1)), ((0, 0), (1, 1)), ((0, 1), (1, 0)))
    ]
    assert len({str(attributes(op)) for op in convs}) == len(convs)
