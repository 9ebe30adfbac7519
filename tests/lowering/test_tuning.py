"""A search goes on after a kill, its records are used where they are faster, and a torn line costs nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import onnx

import reparam_compiler
from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct, Winograd
from reparam_compiler.lowering.conv.choice import candidates
from reparam_compiler.lowering.cpu.machine import VectorUnit, vector_unit
from reparam_compiler.lowering.cpu.tuning import POINTS, features, points
from reparam_compiler.lowering.search.asked import SearchOptions
from reparam_compiler.lowering.search.pairs import Repeats
from reparam_compiler.lowering.search.progress import TuneStep
from reparam_compiler.lowering.search.records import (
    SCHEDULES,
    ConvRecord,
    append_conv,
)
from reparam_compiler.lowering.target import describe, resolve
from tests.support import instant_trials
from tests.support.conv_shapes import conv_shapes
from tests.support.onnx_models import convs_and_pool, model_of, normal, run_on

pytestmark = [pytest.mark.tvm, pytest.mark.usefixtures("one_process")]
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
UNIT = VectorUnit(32, 16, 2)
SHAPE = ConvShape(1, 14, 14, 32, 40, (3, 3), padding=(1, 1, 1, 1))
RULE, OTHER, *_ = candidates(SHAPE, UNIT)


def tuned(model: Any, example_inputs: Any = None, *, database: Path, target: Any = None, **asked: Any) -> lowering.TuneResult:
    heard = {"listener": asked.pop("listener")} if "listener" in asked else {}
    options = SearchOptions(**asked)
    return lowering.tune(model, example_inputs, target=target, database=database, options=options, progress=False, **heard)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.MaxPool2d(2)).eval()


def test_points_start_with_the_rule_and_move_every_knob() -> None:
    found = points(SHAPE, UNIT)
    assert found[0] == RULE
    assert len(found) == len(set(found)) <= POINTS
    for knob in ("rows", "columns", "unroll"):
        assert len({getattr(each.tile, knob) for each in found}) > 1
    winograd = [each for each in found if isinstance(each, Winograd)]
    assert any(each.outputs[0] != each.outputs[1] for each in winograd)
    large = points(ConvShape(1, 56, 56, 64, 64, (3, 3), padding=(1, 1, 1, 1)), UNIT)
    assert len({each.block for each in large}) > 1
    pointwise = points(ConvShape(1, 14, 14, 32, 40, (1, 1)), UNIT)
    assert all(isinstance(each, Direct) for each in pointwise)
    assert {each.tile.order for each in pointwise} == {"weights", "pixels"}


@settings(deadline=None, max_examples=20)
@given(conv_shapes())
def test_points_have_features_of_their_own(shape: ConvShape) -> None:
    found = points(shape, UNIT)
    assert found[0] == candidates(shape, UNIT)[0]
    rows = {features(shape, each, UNIT) for each in found}
    assert all(np.isfinite(row).all() for row in rows)
    assert len(rows) == len(found)


def test_every_point_computes_the_same(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4), onnx.helper.make_node("Relu", ["c"], ["y"])]
    constants = {"w": 0.1 * normal(40, 32, 3, 3), "b": normal(40)}
    model, x = model_of(nodes, {"x": (1, 32, 14, 14)}, ["y"], constants), normal(1, 32, 14, 14)
    (expected,) = run_on(model, x)
    target = resolve(None)
    rule = candidates(SHAPE, vector_unit(target))[0]
    every = points(SHAPE, vector_unit(target))
    chosen = every[1 :: len(every) // 8]
    assert any(isinstance(each, Winograd) for each in chosen)
    for index, algorithm in enumerate(chosen):
        folder = tmp_path / str(index)
        folder.mkdir()
        append_conv(folder, ConvRecord(SHAPE, (), rule, describe(target), (1.0,)))
        append_conv(folder, ConvRecord(SHAPE, (), algorithm, describe(target), (0.1,), against=rule, beside=(1.0,)))
        compiled = lowering.compile(model, database=folder)
        assert str(algorithm) in {kernel.algorithm for kernel in compiled.kernels}
        np.testing.assert_allclose(compiled.run(x)[0], expected, **FLOAT32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"target": "cuda"}, "candidates are run here, and this machine has no device for it"),
        ({"target": "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"}, "candidates are run here, and it is aarch64"),
        ({"target": "lvm"}, "neither a kind"),
        ({"trials": -1}, "trials=-1; expected 0 or more"),
        ({"early_stopping": 0}, "early_stopping=0"),
        ({"min_repeat_ms": -1}, "min_repeat_ms=-1; expected 0 or more"),
        ({"max_seconds": 0.0}, "max_seconds=0.0; expected more than 0 seconds"),
        ({"timeout": 0.0}, "timeout=0.0; expected more than 0 seconds"),
        ({"database": Path(__file__)}, "records are kept in a folder"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_model_is_fused(
    asked: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reparam_compiler.api.compiling.fuse_source", lambda *_: pytest.fail("the model was fused first"))
    for tune in (tuned, reparam_compiler.tune):
        with pytest.raises(LoweringError, match=message):
            tune(net(), torch.zeros(1, 3, 8, 7), **{"database": tmp_path, **asked})


def test_convs_are_measured_once_and_counted_towards_the_trials(tmp_path: Path) -> None:
    model, x = net(), torch.randn(1, 3, 8, 7)
    steps: list[TuneStep] = []
    first = tuned(model, x, trials=3, database=tmp_path, listener=steps.append)
    assert (first.measured, first.total, first.failed) == (3, 3, 0)
    assert [task.trials >= 1 for task in first.tasks[:2]] == [True, True]
    assert all(0 < task.best_seconds < 1 for task in first.tasks[:2])
    assert [step.trial for step in steps[:2]] == [1, 2]
    assert steps[1].best_seconds <= steps[1].start_seconds
    assert steps[-1].trial == 3
    again = tuned(model, x, trials=4, database=tmp_path)
    assert (again.measured, again.total) == (1, 4)
    np.testing.assert_allclose(lowering.compile(model, x, database=tmp_path).run(x)[0], model(x).detach().numpy(), **FLOAT32)


@pytest.mark.slow
def test_ops_without_a_recipe_are_tuned_by_metaschedule_and_compiled_from_records(tmp_path: Path) -> None:
    pool = onnx.helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    model, x = model_of([pool], {"x": (1, 16, 32, 24)}, ["y"]), normal(1, 16, 32, 24)
    result = tuned(model, trials=6, database=tmp_path)
    assert result.total >= 6
    assert result.failed == 0
    assert all(0 < task.best_seconds < 1 for task in result.tasks)
    assert (tmp_path / SCHEDULES).read_bytes().count(b"\n") == result.total
    np.testing.assert_allclose(lowering.compile(model, database=tmp_path).run(x)[0], run_on(model, x)[0], **FLOAT32)
    assert tuned(model, trials=6, database=tmp_path).measured == 0


def test_nothing_starts_where_nothing_is_left_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"trials": 1, "database": tmp_path, "repeat": 2, "number": 3, "min_repeat_ms": 5, "timeout": 4.0}
    asked = instant_trials.install(monkeypatch)
    assert tuned(convs_and_pool(), **words).measured == 1
    assert tuned(convs_and_pool(), **words).measured == 0
    assert asked == [Repeats(2, 3, 5, 4.0)]
