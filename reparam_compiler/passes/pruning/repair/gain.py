"""What repair gained: how far the outputs are from those of the whole model, before repair and after it, on other samples.
Where it made them worse, the cut stays unrepaired.

error(f) = sqrt( sum |f(x) - y|^2 / sum |y|^2 )      over all samples x, y what the whole model gives, mean over the outputs
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes.pruning.criteria.running import Running
from reparam_compiler.passes.pruning.repair.activations import Batch, inputs_of, samples_in

_WORSE = 1.05
"""Above which ratio of two errors one counts as worse: below, it is the choice of samples."""


@dataclass(frozen=True, slots=True)
class Gain:
    """The errors of the outputs, relative, on samples that nothing was fitted to.

    samples: how many. before: of the cut model without repair. after: with it.
    """

    samples: int
    before: float
    after: float

    @property
    def is_worse(self) -> bool:
        """True where repair did harm. A cut that is no better than zeros, whose error is 1, has nothing that could be harmed:
        a detector that finds nothing any more errs less than one that finds again, and errs in places.
        """
        return self.after > _WORSE * self.before and _WORSE * self.before < 1


def gain_on(whole: Graph, hidden: Graph, repaired: Graph, held_out: Iterable[Batch]) -> Gain | None:
    """The gain of a repair; None where no sample is held out, or the graphs cannot be run, give no finite numbers, or give
    outputs whose sizes depend on values.

    Args:
        whole: the model before pruning.
        hidden: the same, masked.
        repaired: the masked one, repaired.
        held_out: batches, an array for each model input.
    """
    batches = iter(held_out)
    first = next(batches, None)
    if first is None:
        return None
    runs, samples = [Running(graph) for graph in (whole, hidden, repaired)], 0
    totals: list[np.ndarray] = []
    try:
        for inputs in inputs_of(whole, chain([first], batches)):
            samples += samples_in(inputs.values())
            with torch.no_grad():
                expected, before, after = (run.outputs(inputs) for run in runs)
            if any(a.shape != b.shape for found in (before, after) for a, b in zip(expected, found, strict=True)):
                return None
            nothing = [torch.zeros_like(y) for y in expected]
            totals.append(np.stack([_squares(expected, found) for found in (nothing, before, after)]))
    except UnsupportedModelError:
        return None
    squares = np.sum(totals, axis=0)
    if not squares.size or not squares[0].all() or not np.isfinite(squares).all():
        return None
    cut, mended = np.sqrt(squares[1:] / squares[0]).mean(1).tolist()
    return Gain(samples, cut, mended)


def _squares(expected: Sequence[Tensor], found: Sequence[Tensor]) -> np.ndarray:
    """For each output that is of floating numbers the sum of the squared differences."""
    pairs = ((a, b) for a, b in zip(expected, found, strict=True) if a.is_floating_point())
    return np.array([float((a.double() - b.double()).square().sum()) for a, b in pairs])
