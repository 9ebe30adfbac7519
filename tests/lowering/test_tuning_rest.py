"""What has no recipe is searched in MetaSchedule's space of its target; a schedule that computes something else has lost."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import onnx
from tvm.s_tir import meta_schedule

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Backend, Tuning
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.gpu.opencl.devices import why_none
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.search import rest
from reparam_compiler.lowering.search.function_trials import FunctionTrials, _Builder, _Runner
from reparam_compiler.lowering.search.measuring import Builders, Meter, without_intrinsics
from reparam_compiler.lowering.search.pairs import Repeats, check_equal
from reparam_compiler.lowering.search.records import SCHEDULES, RestRecord, append_rest
from reparam_compiler.lowering.search.rest import Function, Generic, Store, functions_of
from reparam_compiler.lowering.search.trials import Bench
from reparam_compiler.lowering.target import describe, resolve
from tests.support.onnx_models import model_of, normal, run_on

pytestmark = [pytest.mark.tvm, pytest.mark.usefixtures("one_process")]
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
TRIALS = 2
needs_device = pytest.mark.skipif(bool(why_none()), reason=why_none())


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """A pooling of one kind, and what searches it."""

    backend: Backend
    tuning: Tuning[Any]
    function: Function
    generic: Generic


def pooled(kind: str) -> onnx.ModelProto:
    pool = onnx.helper.make_node(kind, ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return model_of([pool], {"x": (1, 8, 12, 10)}, ["y"])


def searched(kind: str, target: str, folder: Path) -> Searched:
    backend = backend_for(resolve(target))
    tuning: Any = backend.tuning()
    with without_intrinsics(), backend.target:
        functions = functions_of(tuning.rest(tuning.prepared(to_relax(pooled(kind)).module)))
    (function,) = (each for each in functions if "pool" in each.name)
    return Searched(backend, tuning, function, Generic([function], backend.target, tuning, folder))


@contextlib.contextmanager
def bench_of(backend: Backend, folder: Path) -> Iterator[Bench]:
    """What measures, in processes that end with the block."""
    builders, meter = Builders(1, 60.0), Meter(Repeats(1, 1, 0, 60.0))
    with contextlib.closing(builders), contextlib.closing(meter), without_intrinsics(), backend.target:
        yield Bench(backend, builders, meter, folder)


@pytest.mark.parametrize("target", ["llvm", pytest.param("opencl", marks=[needs_device, pytest.mark.slow])])
def test_a_schedule_is_measured_beside_the_rule_and_a_wrong_one_has_lost(target: str, tmp_path: Path) -> None:
    of = searched("MaxPool", target, tmp_path)
    other = searched("AveragePool", target, tmp_path)
    with bench_of(of.backend, tmp_path) as bench:
        trials = FunctionTrials(of.function, of.tuning, bench)
        of.generic.measure(TRIALS, lambda _: trials.builder_and_runner())
        assert (of.generic.measured, of.generic.failed) == (TRIALS, 0)
        module = of.function.alone(of.function.func)
        wrong = of.tuning.scheduled(other.function.alone(other.function.func))[other.function.variable]
        (path,) = trials.build([{"main": wrong.with_attr("global_symbol", "main")}])
        (outcome,) = trials.run([str(path)])
    assert "its output differs from the rule's" in outcome.failure
    assert {str(each.name_hint) for each in module.get_global_vars()} == {"main", of.function.name}

    elsewhere = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"
    assert Store(tmp_path, resolve(elsewhere)).records == []
    append_rest(tmp_path, RestRecord(of.function.code, "pool", describe(of.backend.target), 2.0, 1.0))
    x = normal(1, 8, 12, 10)
    compiled = lowering.compile(pooled("MaxPool"), target=target, database=tmp_path)
    np.testing.assert_allclose(compiled.run(x)[0], run_on(pooled("MaxPool"), x)[0], **FLOAT32)
    assert Store(tmp_path, of.backend.target).best(of.function.func) is not None


def test_a_space_that_fails_is_said_and_costs_the_function_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    of = searched("MaxPool", "llvm", tmp_path)

    def refused(_: Any) -> Any:
        raise RuntimeError("no rule fits")

    monkeypatch.setattr(type(of.tuning), "space", refused)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            of.generic.measure(TRIALS, lambda _: (None, None))
    (line,) = (record.message for record in caplog.records)
    assert line.startswith(f"{of.function.name}: the search in MetaSchedule's space for")
    assert line.endswith("no rule fits")
    assert not (tmp_path / SCHEDULES).read_bytes()


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), LoweringError("the tracker does not answer")], ids=repr)
def test_what_ends_a_search_is_no_failure_of_a_function(
    ends: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised in what MetaSchedule calls: Ctrl-C, or the end of a fleet."""

    class Ending:
        def build(self, _: Sequence[Any]) -> list[str]:
            raise ends

    monkeypatch.setattr(rest, "_strategy", meta_schedule.search_strategy.ReplayTrace)  # at once: no evolution before it builds
    of = searched("MaxPool", "llvm", tmp_path)
    trials: Any = Ending()
    with without_intrinsics(), pytest.raises(type(ends)) as raised:
        of.generic.measure(1, lambda _: (_Builder(trials), _Runner(trials)))
    assert str(raised.value) == str(ends)
    assert of.generic.measured == 0


@pytest.mark.parametrize(
    ("found", "expected", "why"),
    [
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], ""),
        ([1.0, np.nan, -np.inf], [1.0, np.nan, np.inf], "the same places"),
        ([1.0, 2.0], [1.0, np.nan], "the same places"),
        ([np.nan, 2.0], [1.0, 2.0], "by nan"),
        ([1.0, 2.001], [1.0, 2.0], ""),
        ([1.0, 2.01], [1.0, 2.0], "by 0.01; expected at most 0.002"),
        ([1, 2], [1, 2], ""),
        ([1, 3], [1, 2], "by 1; expected at most 0"),
    ],
)
def test_outputs_are_equal_up_to_the_rounding_of_their_dtype(found: list[float], expected: list[float], why: str) -> None:
    dtype = np.int64 if all(isinstance(each, int) for each in expected) else np.float32
    with pytest.raises(LoweringError, match=why) if why else contextlib.nullcontext():
        check_equal(np.array(found, dtype), np.array(expected, dtype))
