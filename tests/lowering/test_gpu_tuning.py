"""A search moves the knobs of a GPU's kernels, all of which compute the same; run on an OpenCL device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler import lowering
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.conv.algorithms import ConvShape, Winograd
from reparam_compiler.lowering.gpu.opencl.devices import why_none
from reparam_compiler.lowering.gpu.plans import Gemm, GpuPlan, WinogradGemm, plan_cycles, plans
from reparam_compiler.lowering.gpu.tiles import Chip, GpuTile
from reparam_compiler.lowering.gpu.tuning import POINTS, GpuTuning, features, points
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.search.asked import SearchOptions
from reparam_compiler.lowering.search.records import ConvRecord, append_conv, read_convs
from reparam_compiler.lowering.target import describe, resolve
from tests.support.conv_shapes import conv_shapes

pytestmark = pytest.mark.tvm
CHIP = Chip(multiprocessors=16, float32_rate=64, tensor_rate=0, shared_memory=16384)
THREADS = 256
SHAPE = ConvShape(1, 14, 14, 32, 48, (3, 3), padding=(1, 1, 1, 1))
needs_device = pytest.mark.skipif(bool(why_none()), reason=why_none())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 40, 1)).eval()


@settings(deadline=None, max_examples=20)
@given(conv_shapes())
def test_points_start_with_the_rule_and_fit_the_device(shape: ConvShape) -> None:
    found = points(shape, CHIP, THREADS)
    assert found[0] == plans(shape, CHIP)[0]
    assert len(found) == len(set(found)) <= POINTS
    assert all(plan.tile.workers <= THREADS and plan.tile.shared_bytes <= CHIP.shared_memory for plan in found)
    rows = {features(shape, plan) for plan in found}
    assert len(rows) == len(found)
    assert all(np.isfinite(row).all() for row in rows)


def test_points_move_every_knob() -> None:
    found = points(SHAPE, CHIP, THREADS)
    for knob in ("rows", "columns", "depth", "thread_rows", "thread_columns", "pieces"):
        assert len({getattr(plan.tile, knob) for plan in found}) > 1, knob
    assert {type(plan) for plan in found} == {Gemm, WinogradGemm}
    assert {plan.outputs for plan in found if isinstance(plan, WinogradGemm)} == {2, 4}
    assert not any(isinstance(plan, WinogradGemm) for plan in points(ConvShape(1, 14, 14, 32, 48, (1, 1)), CHIP, THREADS))


def test_only_gemms_have_points() -> None:
    groups = nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 3, groups=4)).eval()
    backend = backend_for(resolve("opencl"))
    tuning = backend.tuning()
    assert isinstance(tuning, GpuTuning)
    module = tuning.prepared(to_relax(groups, torch.zeros(1, 32, 9, 9)).module)
    assert [str(site) for site in tuning.sites(module)] == ["conv_1x1_32_16_at_7x7"]


def test_a_winograd_plan_is_as_exact_as_its_form_and_costs_what_its_tile_does() -> None:
    small, large = (WinogradGemm(4, GpuTile(side, side, 16, 4, 4)) for side in (32, 64))
    assert str(small) == "winograd 4x4"
    assert isinstance(small.arithmetic, Winograd)
    assert small.arithmetic == large.arithmetic
    assert plan_cycles(SHAPE, small, CHIP) != plan_cycles(SHAPE, large, CHIP)


def test_records_of_plans_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rule, *others = points(SHAPE, CHIP, THREADS)[:40]
    written = [ConvRecord(SHAPE, (), each, "here", (1e-3,), rule, (2e-3,)) for each in others]
    for each in written:
        append_conv(tmp_path, each)
    assert read_convs(tmp_path) == written


@needs_device
@pytest.mark.slow
def test_every_point_computes_the_same_on_the_device(tmp_path: Path) -> None:
    model, x, target = net(), torch.randn(1, 32, 14, 14), resolve("opencl")
    expected = model(x).detach().numpy()
    tuning: Any = backend_for(target).tuning()
    shape = tuning.sites(tuning.prepared(to_relax(model, x).module))[0].shape
    rule, *others = tuning.points(shape)
    sampled: list[GpuPlan] = others[:: len(others) // 10]
    assert {type(plan) for plan in sampled} == {Gemm, WinogradGemm}
    for index, plan in enumerate(sampled):
        folder = tmp_path / str(index)
        folder.mkdir()
        append_conv(folder, ConvRecord(shape, (), rule, describe(target), (1.0,)))
        append_conv(folder, ConvRecord(shape, (), plan, describe(target), (0.1,), rule, (1.0,)))
        compiled = lowering.compile(model, x, target=target, database=folder)
        assert any(str(plan) in kernel.algorithm for kernel in compiled.kernels)
        np.testing.assert_allclose(compiled.run(x)[0], expected, rtol=1e-4, atol=1e-5)


@needs_device
@pytest.mark.slow
def test_a_search_on_a_device_makes_no_net_slower(tmp_path: Path) -> None:
    model, x = net(), torch.randn(1, 32, 14, 14)
    options = SearchOptions(trials=8, repeat=2)
    found = lowering.tune(model, x, target="opencl", database=tmp_path, options=options, progress=False)
    assert (found.measured, found.failed) == (8, 0)
    assert found.rule_seconds is not None
    assert found.net_seconds is not None
    assert found.net_seconds <= found.rule_seconds
    compiled = lowering.compile(model, x, target="opencl", database=tmp_path)
    np.testing.assert_allclose(compiled.run(x)[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
