"""What an option cannot be, and what nothing would read, is refused by name; no model is needed for that."""

from typing import Any, get_args

import numpy as np
import pytest
from torch import nn

from reparam_compiler.api.options import FuseOptions, PruneOptions
from reparam_compiler.cost.model import USUAL
from reparam_compiler.errors import InfeasiblePruneError, RewriteError
from reparam_compiler.passes.choices import Policy

DATA = np.zeros((2, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "nonsense"}, "policy: found 'nonsense'; expected 'cost' or 'always'"),
        ({"policy": "Always"}, "policy: found 'Always'"),
        ({"policy": None}, "policy: found None"),
        ({"cost_model": 3}, "cost_model: found 3; expected a CostModel"),
        ({"cost_model": "usual"}, "cost_model: found 'usual'"),
        ({"keep_bn": "no"}, "keep_bn: found 'no'; expected True or False"),
    ],
)
def test_how_to_fuse_is_one_of_what_there_is(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        FuseOptions(**options)


@pytest.mark.parametrize("policy", get_args(Policy))
def test_every_policy_reaches_the_passes(policy: Policy) -> None:
    found = FuseOptions(policy=policy, keep_bn=True).of_passes(verify=False)
    assert (found.policy, found.cost_model, found.keep_bn, found.verify) == (policy, USUAL, True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": "0.5"}, "ratio='0.5': give the share"),
        ({"ratio": 1.0}, "ratio=1.0: give the share"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"round_to": 8.0}, "round_to=8.0: give a number of channels"),
        ({"round_to": 2.5}, "round_to=2.5"),
        ({"round_to": "8"}, "round_to='8'"),
        ({"round_to": 0}, "round_to=0"),
        ({"ignore": 5}, "ignore: found 5; expected a name"),
        ({"allocation": "best"}, "allocation='best'"),
        ({"allocation": 3}, "allocation=3"),
        ({"allocation": {"0": "0.5"}}, "allocation\\['0'\\]='0.5'"),
        ({"importance": "zz"}, "importance 'zz' is not known"),
        ({"importance": 3}, "importance 3 is not known"),
        ({"quality": "best"}, "quality='best'"),
        ({"quality": ["high"]}, "quality=\\['high'\\]"),
        ({"loss": 3}, "loss: found 3; expected a function"),
        ({"latency": 0.5, "measure": 3}, "measure: found 3; expected a function"),
    ],
)
def test_an_option_of_pruning_that_makes_no_sense_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InfeasiblePruneError, match=message):
        PruneOptions(**options)


@pytest.mark.parametrize("name", ["flops", "params", "latency"])
@pytest.mark.parametrize("share", ["0.5", 0, 1.5])
def test_a_budget_is_a_share(name: str, share: Any) -> None:
    with pytest.raises(InfeasiblePruneError, match=f"{name}={share!r}: give the share that may remain"):
        _ = PruneOptions(**{name: share}).budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": 0.5, "std": -1}, "mean=0.5 says what is done with calibration data, and there is none"),
        ({"std": (1.0, 1.0, 1.0)}, "std="),
        ({"quality": "high"}, "quality='high' says"),
        ({"quality": "fast"}, "quality='fast' says"),
        ({"ratio": 0.5, "measure": len}, "measure: it times a latency, and none is limited"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InfeasiblePruneError, match=message):
        PruneOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": np.float32(0.5), "round_to": np.int64(4)},
        {"ratio": 0, "quality": "standard"},
        {"quality": "high", "calibration": DATA, "mean": 0.5},
        {"latency": 0.5, "measure": len},
        {"importance": lambda scoring: np.zeros(scoring.groups.count), "loss": len},
        {"ignore": (nn.ReLU(), "head*")},
    ],
)
def test_what_makes_sense_is_taken(options: dict[str, Any]) -> None:
    PruneOptions(**options)
