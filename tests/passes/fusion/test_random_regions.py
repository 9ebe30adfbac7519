"""Whatever linear graph comes along, the fused one gives the same values, and near-misses are left alone."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import fx

import reparam_compiler
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.interpreter.evaluate import evaluate
from tests.support.onnx_models import exported
from tests.support.random_regions import RandomRegion, random_regions, sizes_to_try
from tests.support.small_models import EXACT, normal, relative_error


def runs(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """None where the geometry leaves nothing, or asks a padding mode for more than there is."""
    try:
        with torch.no_grad():
            y = model(x)
    except RuntimeError:
        return None
    return y if y.numel() else None


def check(region: tuple[RandomRegion, int, int], *, verify: bool, shapes: bool) -> None:
    model, channels, rank = region
    model = model.eval()
    inputs = [normal(2, channels, *sizes) for sizes in sizes_to_try(rank)]
    expected = [runs(model, x) for x in inputs]
    if all(y is None or y.abs().max() < 1e-12 for y in expected):  # nothing, or the rounding of nothing
        return
    known = next(x for x, y in zip(inputs, expected, strict=True) if y is not None)
    traced = fx.symbolic_trace(copy.deepcopy(model))
    fused, report = reparam_compiler.fuse(traced, (known,) if shapes else None, verify=verify, return_report=True)
    for x, y in zip(inputs, expected, strict=True):
        if y is not None:
            with torch.no_grad():
                assert relative_error(y, fused(x)) < EXACT, report.to_text()
    assert not any("proof failed" in refusal.reason for refusal in report.refusals), report.to_text()


@settings(max_examples=settings.default.max_examples // 3)
@given(region=random_regions())
def test_a_fused_region_gives_the_same_values_on_sources_of_several_sizes(region: tuple[RandomRegion, int, int]) -> None:
    check(region, verify=True, shapes=True)


@settings(max_examples=settings.default.max_examples // 3)
@given(region=random_regions())
def test_the_algebra_is_right_without_the_proof_and_without_shapes(region: tuple[RandomRegion, int, int]) -> None:
    check(region, verify=False, shapes=False)


def first_that_runs(region: tuple[RandomRegion, int, int]) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor] | None:
    model, channels, rank = region
    model = model.eval()
    for sizes in sizes_to_try(rank):
        x = normal(2, channels, *sizes)
        if (y := runs(model, x)) is not None:
            return model, x, y
    return None


@settings(max_examples=settings.default.max_examples // 5)
@given(region=random_regions())
def test_the_same_through_export(region: tuple[RandomRegion, int, int]) -> None:
    if (found := first_that_runs(region)) is not None:
        model, x, y = found
        program, report = reparam_compiler.fuse(torch.export.export(model, (x,)), policy="always", return_report=True)
        with torch.no_grad():
            assert relative_error(y, program.module()(x)) < EXACT, report.to_text()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@settings(max_examples=settings.default.max_examples // 5)
@given(region=random_regions())
def test_the_same_through_onnx(region: tuple[RandomRegion, int, int]) -> None:
    """In float64, by the interpreter: ONNX Runtime has no convs in it."""
    if (found := first_that_runs(region)) is None:
        return
    model, x, y = found
    with tempfile.TemporaryDirectory() as folder:
        try:
            proto = exported(model, x, Path(folder), dynamo=False, dynamic=False)
        except (RuntimeError, ValueError, torch.onnx.errors.OnnxExporterError):  # what the exporter has no ONNX for
            return
    if tuple(dim.dim_value for dim in proto.graph.output[0].type.tensor_type.shape.dim) != y.shape:
        return  # the exporter counts a window of ceil_mode that torch leaves out, and writes constants of that size
    fused, report = reparam_compiler.fuse(proto, verify=True, policy="always", return_report=True)
    graph = OnnxFrontend().read(fused).graph
    result = evaluate(graph, {proto.graph.input[0].name: x})[graph.outputs[0]]
    assert relative_error(y, result) < EXACT, report.to_text()
