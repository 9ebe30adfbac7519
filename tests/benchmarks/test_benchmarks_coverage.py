"""The coverage of ops: how a run is counted, and that it goes on behind a model at which its process ends."""

import os
import time
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    from benchmarks import op_coverage

    return op_coverage


def refused() -> Any:
    return nn.ReLU().train(), None


def dead() -> Any:
    os._exit(3)


def broken() -> Any:
    raise KeyError("no such op")


def stuck() -> Any:
    time.sleep(600)


def test_every_model_has_a_class_and_the_run_goes_on_behind_the_end_of_a_process(coverage: ModuleType) -> None:
    from benchmarks.op_models import OneOp

    models = [OneOp(make.__name__, make) for make in (refused, dead, broken)]
    found = list(coverage.outcomes(models))
    assert [(one.name, one.found) for one in found] == [("refused", "refused"), ("dead", "crashed"), ("broken", "crashed")]
    assert found[1].words == "its process died"
    assert coverage.counted({"torch": found})[-1] == "| torch | 3 | 0 | 1 | 0 | 0 | 2 | 0.0% |"


def test_a_model_that_takes_too_long_is_ended(coverage: ModuleType) -> None:
    from benchmarks.op_models import OneOp

    (found,) = coverage.outcomes([OneOp("stuck", stuck)], limit=3)
    assert (found.name, found.found, found.words) == ("stuck", "crashed", "took more than 3 s")


@pytest.mark.tvm
def test_a_model_that_computes_what_it_should_is_equal(coverage: ModuleType) -> None:
    from benchmarks.op_models import OneOp

    one = coverage.outcome(OneOp("relu", lambda: (nn.ReLU().eval(), (torch.randn(2, 3),))))
    assert (one.name, one.found) == ("relu", "equal")
    assert "## torch: equal" in coverage.listed({"torch": [one]})


def test_models_of_torch_have_names_of_their_own_and_run(coverage: ModuleType) -> None:
    models = coverage.models_of("torch")
    assert len(models) > 300
    for one in coverage.models_of("torch", ["sort", "Fold*"]):
        module, inputs = one.make()
        assert module(*inputs) is not None
