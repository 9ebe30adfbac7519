"""What is measured before a region is rewritten: its response to zero, and both of its forms on random sources.

Sources are just wider than the kernel, so that most outputs see the border; no spatial axis has the size of another, and a
strided kernel is tried on even and odd sizes. A region of more than convs, norms and sums may act on certain positions, on
whole axes or across the batch: it is tried on two samples, on multiples of these sizes and on long ones too (`probe.larger`),
or on the sizes that the model has, where it has no others.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.core.drawn import is_drawn
from reparam_compiler.core.kernel import Bias, ConvKernel, Ints, NotFusable
from reparam_compiler.errors import ReparamError
from reparam_compiler.interpreter.difference import EXACT, Difference, difference
from reparam_compiler.interpreter.evaluate import evaluate_region
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, NodeId, TensorType
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.fusion.probe import larger

TOLERANCE = 1e-9
"""The largest relative difference, in float64, of a region and the conv that replaces it."""


class Trial:
    """A region and the sources that it is tried on.

    known: the type of the source; its sizes are tried where no smaller ones can be.
    fixed: every run has these sizes.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        source: NodeId,
        kernel: ConvKernel,
        layout: SourceLayout,
        known: TensorType | None,
        *,
        fixed: bool,
    ) -> None:
        self.nodes, self.source, self.layout = nodes, source, layout
        small = _small_shapes(kernel, layout)
        recorded = [] if known is None else _recorded_shapes(known, small[0])
        self._tries = [small, recorded]
        if acts_on_positions(nodes):
            pairs = [(2, *shape[1:]) for shape in small]
            if not layout.last:
                pairs += [(2, layout.channels, *sizes) for sizes in larger(layout.channels, small[0][2:])]
            alone = fixed and recorded and known is not None and known.static_shape is not None
            self._tries = [recorded] if alone else [pairs, recorded]

    def run(self, draw: Callable[[Ints, int], Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(source, what the region gives) for sources that are drawn by shape and number.

        Raises NotFusable where the region runs on none, and where all are too large to be drawn.
        """
        if not any(is_drawn(shape) for shapes in self._tries for shape in shapes):
            raise NotFusable("the proof failed: every source that shows what the region does is too large to be drawn")
        runs = []
        for shapes in self._tries:
            for number, shape in enumerate(each for each in shapes if is_drawn(each)):
                x = draw(shape, number)
                try:
                    runs.append((x, evaluate_region(self.nodes, self.source, x)))
                except ReparamError:  # a reshape to other sizes, say; the next shape may do
                    continue
            if runs:
                return runs
        raise NotFusable("the proof failed: the region does not run on its own")


def _small_shapes(kernel: ConvKernel, layout: SourceLayout) -> list[Ints]:
    if layout.last:
        return [(*(3, 2, 5, 4)[: (layout.axes or 2) - 1], layout.channels)]
    base = [
        max(span, *map(abs, pair)) + sum(abs(min(amount, 0)) for amount in pair) + s + 1
        for span, s, pair in zip(kernel.span, kernel.stride, kernel.padding, strict=True)
    ]
    unlike: list[int] = []
    for size in base:
        while size in unlike:
            size += 1
        unlike.append(size)
    sizes = [tuple(unlike)]
    if any(s > 1 for s in kernel.stride):
        sizes.append(tuple(size + 1 for size in unlike))
    return [(1 if spatial else 3, layout.channels, *spatial) for spatial in sizes]


def _recorded_shapes(known: TensorType, small: Ints) -> list[Ints]:
    """The shape that a source was recorded with; where a size besides the batch's is open, two with small ones there."""
    if len(known.shape) != len(small):
        return []
    opened = any(not isinstance(size, int) for size in known.shape[1:])
    small = (2, *small[1:])
    return [
        tuple(size if isinstance(size, int) else other + extra for size, other in zip(known.shape, small, strict=True))
        for extra in ((0, 5) if opened else (0,))
    ]


def acts_on_positions(nodes: Sequence[Node]) -> bool:
    """True where an op may treat certain positions, a whole axis or the batch in its own way, which rules do not see."""
    return not all(map(_is_alike_everywhere, nodes))


def _is_alike_everywhere(node: Node) -> bool:
    op = node.op
    if isinstance(op, ops.Slice):
        return op.axis == 1
    return op.alike_everywhere and not (isinstance(op, ops.AvgPool) and op.ceil_mode)


def measured_bias(trial: Trial, tolerance: float) -> Bias | None:
    """The response of a region to zero, one number for each channel; None where it differs from position to position.

    The number is that of a position in the middle: the border may hold what was rounded.
    """
    runs = trial.run(lambda shape, _: torch.zeros(shape, dtype=torch.float64))
    by_channel = torch.cat([y.movedim(-1 if trial.layout.last else 1, 0).flatten(1) for _, y in runs], 1)
    middle = runs[0][1].movedim(-1 if trial.layout.last else 1, -1)
    while middle.ndim > 1:
        middle = middle[middle.shape[0] // 2]
    middle = middle[:, None]
    if difference(middle.expand_as(by_channel), by_channel).relative > tolerance:
        return None
    return np.array(middle.reshape(-1).numpy())


def prove(trial: Trial, after: Node, tolerance: float = TOLERANCE) -> Difference:
    """The largest difference of a region and the node that replaces it, on normal random sources.

    Raises NotFusable where it is above `tolerance`, relative to the largest value.
    """

    def draw(shape: Ints, seed: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    worst = EXACT
    for x, expected in trial.run(draw):
        worst = max(worst, difference(expected, evaluate_region([after], trial.source, x)), key=lambda d: d.relative)
    if not worst.relative <= tolerance:
        raise NotFusable(f"the proof failed: both forms differ by {worst.max_abs:.3g} ({worst.relative:.3g} relative)")
    return worst
