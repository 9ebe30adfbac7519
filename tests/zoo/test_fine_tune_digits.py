"""The example that fine-tunes a pruned net runs, and its settings improve a net that pruning hurt."""

import copy
import re

import pytest
import torch
from torch import nn

import reparam_compiler
from examples import fine_tune_digits
from reparam_compiler.zoo import calibration_images, digits_repvgg


def test_it_prints_the_accuracy_of_each_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["fine_tune_digits.py", "--epochs", "2", "--ratio", "0.7"])
    fine_tune_digits.main()
    before, pruned, after = (float(share) for share in re.findall(r"(\d+\.\d\d)%", capsys.readouterr().out))
    assert before > 99
    assert pruned > 50  # chance is 10
    assert after > pruned - 0.5


@pytest.fixture(scope="module")
def hard() -> nn.Module:
    """The digits' net, pruned by nine tenths."""
    example = (torch.zeros(1, 1, 16, 16),)
    fused = reparam_compiler.fuse(digits_repvgg(), example, verify=False)
    return reparam_compiler.prune(fused, example, ratio=0.9, calibration=calibration_images(64))


@pytest.mark.parametrize("seed", [0, 1])
def test_its_settings_improve_a_net_that_was_pruned_hard(seed: int, hard: nn.Module) -> None:
    pruned = copy.deepcopy(hard)
    before = fine_tune_digits.on_test(pruned)
    fine_tune_digits.fine_tune(pruned, epochs=3, seed=seed)
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())
    assert fine_tune_digits.on_test(pruned) > before
    assert not pruned.training
