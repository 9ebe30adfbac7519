"""How much each channel group matters: criteria that give every group a score. The least important go first.

    magnitude        l1, l2, bn_scale, fpgm, geometric, random: of the weights alone
    gradient         taylor, hessian: of a loss on calibration data
    activation       energy, lasso: of what the consumers read on calibration data
    optimal_brain    obs, obs_patches: of what the consumers cannot make good for

A group's filters are the slices, along the output axis, of all convs and linears that it runs through.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups
from reparam_compiler.passes.pruning.coupling.labels import called
from reparam_compiler.passes.pruning.criteria import (  # noqa: F401 (they register criteria)
    activation,
    gradient,
    magnitude,
    optimal_brain,
)
from reparam_compiler.passes.pruning.criteria.base import (
    CRITERIA,
    Criterion,
    Loss,
    Scores,
    Scoring,
    is_cumulative,
    register_criterion,
)
from reparam_compiler.passes.pruning.criteria.running import first_not_finite
from reparam_compiler.passes.pruning.repair.activations import Batch

__all__ = [
    "CRITERIA",
    "Criterion",
    "Loss",
    "Scores",
    "Scoring",
    "criterion_of",
    "importance",
    "is_cumulative",
    "register_criterion",
]


def importance(
    graph: Graph,
    groups: ChannelGroups,
    criterion: str | Criterion = "l1",
    *,
    seed: int = 0,
    batches: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    widths: Mapping[str, int] | None = None,
) -> Scores:
    """A score for each group.

    Args:
        graph: the model.
        groups: its coupling.
        criterion: a name in `CRITERIA`, or a function from `Scoring` to scores.
        seed: for criteria that draw.
        batches: calibration data, an array for each model input; for criteria that need it.
        loss: from the model's output, or a tuple of its outputs, to a scalar, for criteria by gradient; None is
            `gradient.default_loss`.
        widths: as in `Scoring`.

    Returns:
        `G`, finite.

    Raises:
        InfeasiblePruneError: an unknown name, a criterion that this model does not suit, no calibration data for one that needs
            it, a loss for one that takes none, or scores that cannot be ranked.
    """
    heard = None if loss is None else _Heard(loss)
    scores = np.asarray(criterion_of(criterion)(Scoring(graph, groups, seed, batches, heard, widths)), np.float64)
    if heard is not None and not heard.calls:
        raise InfeasiblePruneError(f"loss: importance {criterion!r} takes none; leave it out, or rank by 'taylor' or 'hessian'")
    if scores.shape != (groups.count,) or not np.isfinite(scores[1:]).all():
        if batches is not None and (found := first_not_finite(graph, batches)) is not None:
            raise InfeasiblePruneError(
                f"{called(graph[found[0]])} gives numbers that are not finite on calibration batch {found[1]} (counted from "
                "0), in the model as it was given; give inputs as the model sees them"
            )
        raise InfeasiblePruneError(
            f"importance gave scores of shape {scores.shape}, {int((~np.isfinite(scores)).sum())} not finite; "
            f"expected ({groups.count},), a finite number for each group"
        )
    return scores


def criterion_of(criterion: object) -> Criterion:
    """The criterion of a name, or the one that is given; raises InfeasiblePruneError where there is none."""
    if callable(criterion):
        return cast(Criterion, criterion)
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise InfeasiblePruneError(f"importance {criterion!r} is not known; choose one of {', '.join(sorted(CRITERIA))}")
    return CRITERIA[criterion]


@dataclass(slots=True)
class _Heard:
    """A loss that counts how often it is asked."""

    loss: Loss
    calls: int = 0

    def __call__(self, outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        self.calls += 1
        return self.loss(outputs)
