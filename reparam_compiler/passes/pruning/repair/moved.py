"""More to fit to than was given: each calibration sample a second time, moved a little, as another photograph would have it.

    x'[n, c, s] = x[n, c, s + d_n]      d_n drawn for each sample, |d_n| at most a `SHARE` of each spatial axis; edges go on

The late layers of a net have few positions: of 224 images the digits net has 896 rows for 576 features there, and what is
fitted to so few is worse on others. What the whole model gives for a moved sample is known as well as for the sample itself,
so nothing is assumed but that the model may see such input: the axes must be those that convs run over.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes.pruning.repair.activations import Array, Batch

SHARE = 16
"""An axis is moved along by at most its size over this: not by one position where it is shorter."""


@dataclass(frozen=True, slots=True, eq=False)
class WithMoved:
    """Batches of one array, and after each of them a copy of it with its samples moved; always the same copies."""

    batches: Iterable[Batch]

    def __iter__(self) -> Iterator[Batch]:
        draw = np.random.default_rng(0)
        for batch in self.batches:
            yield batch
            (samples,) = (batch,) if isinstance(batch, Array) else batch
            yield moved(samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples, draw)


def can_be_moved(graph: Graph) -> bool:
    """True for a model of one input that convs, and nothing else, read. (What several show may have to stay in line.)"""
    inputs = [node.id for node in graph if isinstance(node.op, ops.Input)]
    return len(inputs) == 1 and all(isinstance(graph[user].op, ops.Conv) for user in graph.users[inputs[0]])


def moved(samples: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The samples `N C *S`, each moved along its spatial axes by a distance of its own."""
    reach = [size // SHARE for size in samples.shape[2:]]
    wide = np.pad(samples, [(0, 0), (0, 0), *((far, far) for far in reach)], mode="edge")
    starts = draw.integers(0, 2 * np.array(reach) + 1, (len(samples), len(reach)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, samples.shape[2:], tuple(range(2, samples.ndim)))
    return np.stack([each[(slice(None), *start)] for each, start in zip(windows, starts, strict=True)])
