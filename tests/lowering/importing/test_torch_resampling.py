"""Interpolation: the tables are torch's own, at any ratio and factor; axes and modes reach them rightly."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support.compiled_functions import differing

pytestmark = pytest.mark.tvm
MODES = {"nearest": "nearest", "nearest_exact": "nearest-exact", "linear": "linear", "average": "area"}
SIZES = st.integers(1, 17)


def matrix(table: Any, before: int) -> torch.Tensor:
    """The table as a matrix from the source to the result."""
    after, taps = table.where.shape
    found = torch.zeros(after, before, dtype=torch.float64)
    for row in range(after):
        for tap in range(taps):
            found[row, table.where[row, tap]] += 1.0 if table.weight is None else table.weight[row, tap]
    return found


@given(SIZES, SIZES, st.sampled_from(sorted(MODES)), st.booleans())
def test_tables_between_sizes_are_those_of_torch(before: int, after: int, kind: str, corners: bool) -> None:
    from reparam_compiler.lowering.importing.torch_ops.resampling import TABLES, Axis

    corners = corners and kind == "linear"
    settings = {"align_corners": corners} if kind == "linear" else {}
    expected = F.interpolate(torch.eye(before)[None], after, mode=MODES[kind], **settings)[0].T
    found = matrix(TABLES[kind](Axis(before, after, corners, None)), before)
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5)


@given(SIZES, st.floats(0.3, 3.0), st.sampled_from(["nearest", "nearest_exact", "linear"]))
def test_tables_of_factors_are_those_of_torch(before: int, factor: float, kind: str) -> None:
    from reparam_compiler.lowering.importing.torch_ops.resampling import TABLES, Axis

    if int(before * factor) in (0, before):
        return  # an axis that keeps its size has no table in every mode
    expected = F.interpolate(torch.eye(before)[None], scale_factor=factor, mode=MODES[kind])[0].T
    found = matrix(TABLES[kind](Axis(before, len(expected), False, factor)), before)
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5)


@given(SIZES, SIZES, st.sampled_from(["bilinear", "bicubic"]), st.booleans())
def test_tables_of_pictures_are_those_of_torch(before: int, after: int, mode: str, antialias: bool) -> None:
    from reparam_compiler.lowering.importing.torch_ops.resampling import TABLES, Axis

    kind = {"bilinear": "linear", "bicubic": "cubic"}[mode] + ("_aa" if antialias else "")
    picture = torch.eye(before)[None, :, :, None].repeat(1, 1, 1, 3)  # channels are the source's elements
    expected = F.interpolate(picture, (after, 3), mode=mode, antialias=antialias)[0, :, :, 0].T
    found = matrix(TABLES[kind](Axis(before, after, False, None)), before)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)


def test_pictures_are_resampled_along_each_axis() -> None:
    functions = {
        "nearest": lambda x: F.interpolate(x, (4, 20)),
        "factors": lambda x: F.interpolate(x, scale_factor=(1.7, 0.6)),
        "bilinear factor": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        "bicubic": lambda x: F.interpolate(x, (5, 13), mode="bicubic"),
        "antialias": lambda x: F.interpolate(x, (4, 3), mode="bilinear", antialias=True),
        "corners of one pixel": lambda x: F.interpolate(x, (1, 1), mode="bilinear", align_corners=True),
        "volume": lambda x: F.interpolate(x[None], (3, 4, 15), mode="trilinear"),
        "kept": lambda x: F.interpolate(x, (18, 22)),
    }
    assert differing(functions, torch.randn(1, 3, 9, 11)) == []


def test_an_axis_that_keeps_its_size_is_copied_where_torch_copies_it() -> None:
    """Torch does so for the linear modes, and for the nearest of pictures alone."""
    functions: dict[str, Any] = {
        f"{mode}{' smoothed' * smoothed}": lambda x, settings={"mode": mode, "antialias": smoothed}: F.interpolate(
            x, scale_factor=(1.15, 2.0), **settings
        )
        for mode in ("bilinear", "bicubic", "nearest", "nearest-exact")
        for smoothed in {False, mode.startswith("bi")}
    }
    for mode in ("linear", "nearest"):
        functions[f"line, {mode}"] = lambda x, mode=mode: F.interpolate(x[0, :, :, :5], scale_factor=1.15, mode=mode)
    functions["volume"] = lambda x: F.interpolate(x[None], scale_factor=(1.0, 1.15, 2.0), mode="nearest")
    assert differing(functions, torch.randn(1, 3, 5, 6)) == []


def test_whole_ratios_stay_the_op_that_the_layout_pass_knows() -> None:
    from reparam_compiler.lowering.importing.importer import to_relax

    for settings in ({"scale_factor": 2}, {"size": (12, 15), "mode": "bilinear"}):
        text = to_relax(torch.nn.Upsample(**settings).eval(), torch.zeros(1, 3, 4, 5)).module.script()
        assert text.count("R.image.resize2d(") == 1
        assert "call_tir" not in text
