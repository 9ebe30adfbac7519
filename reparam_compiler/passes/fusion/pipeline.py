"""The phases of a fuse, in order, with the invariants checked between them and the graph in the log, at level debug.

fuse_branches    regions with branches, convs in sequence
fold_bn          what conv-BN pairs remain, and pads before convs
move_norms       norms that stand before a mean, a pool or a reshape and then a layer
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from reparam_compiler.ir.graph import Graph
from reparam_compiler.ir.ops import why_opaque
from reparam_compiler.ir.printer import to_text
from reparam_compiler.ir.verifier import check
from reparam_compiler.passes.fusion.fold_bn import fold_bn
from reparam_compiler.passes.fusion.fuse_branches import DEFAULTS, Fusion, Options, PassResult, Refusal, fuse_branches
from reparam_compiler.passes.fusion.move_norms import move_norms

logger = logging.getLogger(__name__)


@runtime_checkable
class Pass(Protocol):
    """A rewrite of the graph."""

    def __call__(self, graph: Graph, options: Options, /) -> PassResult:
        """The rewritten graph, the same object where there was nothing to do."""
        ...


@dataclass(frozen=True, slots=True)
class Phase:
    """A pass and the name that the log gives it."""

    name: str
    run: Pass


FUSE: tuple[Phase, ...] = (Phase("fuse_branches", fuse_branches), Phase("fold_bn", fold_bn), Phase("move_norms", move_norms))


def run(graph: Graph, options: Options = DEFAULTS, phases: tuple[Phase, ...] = FUSE) -> PassResult:
    """Runs the phases; raises InvalidGraphError where one of them leaves a graph that breaks an invariant."""
    check(graph)
    fusions: list[Fusion] = []
    refusals: list[Refusal] = []
    for phase in phases:
        result = phase.run(graph, options)
        graph = result.graph
        check(graph)
        fusions += result.fusions
        gone = {node_id for fusion in result.fusions for node_id in fusion.nodes}
        refusals = [*(refusal for refusal in refusals if refusal.node not in gone), *result.refusals]
        logger.info("%s: %d rewritten, %d left", phase.name, len(result.fusions), len(result.refusals))
        logger.debug("after %s:\n%s", phase.name, _LazyText(graph))
    standing = [refusal for refusal in refusals if refusal.node in graph.nodes]
    return PassResult(graph, tuple(fusions), _once_for_each_cause(standing, graph))


def _once_for_each_cause(refusals: Sequence[Refusal], graph: Graph) -> tuple[Refusal, ...]:
    """The refusals; of those that have the way in which the model has its layers as their cause only the first."""
    causes = sorted(filter(None, {why_opaque(node.op) for node in graph}), key=len, reverse=True)
    kept: list[Refusal] = []
    first: dict[str, int] = {}
    more: Counter[str] = Counter()
    for refusal in refusals:
        cause = next((cause for cause in causes if refusal.reason.endswith(cause)), "")
        if cause in first:
            more[cause] += 1
            continue
        if cause:
            first[cause] = len(kept)
        kept.append(refusal)
    for cause, count in more.items():
        told = kept[first[cause]]
        kept[first[cause]] = replace(told, reason=f"{told.reason}; {count} more for that")
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class _LazyText:
    graph: Graph

    def __str__(self) -> str:
        return to_text(self.graph)
