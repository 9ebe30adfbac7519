"""Whether a compiled model computes each sample by itself, whatever stands beside it: what a run by pieces rests on.

    f_b(x_1, …, x_b)[i]  =  f_s(x_i, …, x_i)[j]      for every batch b that was compiled, the smallest one s, every j of s

A softmax or a mean over the first axis, a Reshape to a constant batch, a norm by the statistics of its batch: each breaks that
on random samples. So does a variant that computes something else than the others, whatever made it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.checking.bounds import bound_of, nudged
from reparam_compiler.checking.runners import coarsest
from reparam_compiler.checking.tolerances import BY_DTYPE, EPS, LAYERS, MARGIN, NUDGES
from reparam_compiler.errors import LoweringError
from reparam_compiler.frontends.torch.tensors import dtype_word
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph

if TYPE_CHECKING:
    from reparam_compiler.lowering import Executable, TensorSpec

MIXES = (
    "An op of the model mixes samples, such as a softmax or a mean over the first axis, a Reshape to a constant batch, or a "
    "norm by the statistics of its batch"
)
FEW, KEPT = 5, 3
"""Of the samples that a graph is evaluated on: how many, and the one that is the same twice; it is not in the middle, where a
flip would leave it."""
Arrays = Sequence["np.ndarray[Any, Any]"]


def check_apart(executable: "Executable", *, max_error: float = 0.0, advice: str = "", mixing: Callable[[], str] = str) -> None:
    """Run each batch of a compiled model on different samples, and the smallest on copies of some of them.

    Args:
        executable: for two batches, or for one above 1, which this machine runs.
        max_error: the relative error that a layer's algorithm may have. advice: what to do.
        mixing: tells the op that mixes samples, where that can be said; asked where some are mixed.

    Raises: LoweringError, which names the output, where a sample comes out otherwise beside others; or what is of bfloat16.
    """
    from reparam_compiler.lowering.runtime.batches import of_samples
    from reparam_compiler.lowering.runtime.description import filled

    for spec in (*executable.inputs, *executable.outputs):
        if spec.dtype == "bfloat16":
            raise LoweringError(
                f"{spec.name}: found bfloat16, which numpy does not have, so that none can be compared; convert the model "
                f"to float32 or float16. {advice}"
            )
    batches, samples = executable.batches, executable.batches[-1]
    inputs = [filled(spec, "random", seed) for seed, spec in enumerate(of_samples(executable.inputs, samples))]
    together = {batch: _rows(executable, batch, [_part(x, 0, batch) for x in inputs]) for batch in batches}
    for place in sorted({0, 1 % samples, samples // 2, samples - 1}):
        sample = [_part(x, place, place + 1) for x in inputs]
        first, *copies = _alone(executable, sample)
        others = [*((batches[0], rows) for rows in copies), *((b, together[b][place]) for b in batches if place < b)]
        for batch, rows in others:
            for spec, expected, found in zip(executable.outputs, first, rows, strict=True):
                apart = difference(expected, found).max_abs
                if not apart <= _bound(executable, sample, executable.outputs.index(spec), apart, max_error):
                    raise LoweringError(
                        f"{spec.name}: sample {place + 1} of a batch of {batch} comes out otherwise than alone "
                        f"(by {apart:.1g}). {_culprit(mixing())}. {advice}"
                    )


def first_mixing(graph: Graph, inputs: Sequence["TensorSpec"]) -> str:
    """The first op by which a sample's values come to depend on other samples; nothing where no such is seen.

    The graph is evaluated twice, on samples of which one is the same. Where an op gives rows of that sample that differ, it is
    the op, or what it reads that has no rows for each sample, as a mean over all of them.

    Args:
        graph: the model. inputs: in the order of its own.

    Raises: UnsupportedModelError, RewriteError where it cannot be evaluated on so many samples.
    """
    from reparam_compiler.lowering.runtime.batches import of_samples
    from reparam_compiler.lowering.runtime.description import filled

    specs, ids = of_samples(inputs, FEW), [node.id for node in graph if isinstance(node.op, ops.Input)]
    first, second = ([torch.from_numpy(filled(spec, "random", seed)) for spec in specs] for seed in range(2))
    for x, y in zip(first, second, strict=True):
        kept = KEPT if x.ndim else ...
        y[kept] = x[kept]
    wanted = [node.id for node in graph]
    values = [evaluate(graph, dict(zip(ids, given, strict=True)), wanted=wanted) for given in (first, second)]
    rows = {node_id: [_rows_of(each[node_id], KEPT) for each in values] for node_id in wanted}
    for node in graph:
        one, other = rows[node.id]
        if one is not None and other is not None and not difference(one, other).max_abs <= EPS["f32"] * (1 + one.abs().max()):
            whole = (source for source in node.sources if rows[source][0] is None)
            named = graph[next(whole, node.id)]
            return f"{named.id} ({named.op.name})"
    return ""


def _rows_of(value: Any, place: int) -> Tensor | None:
    """What a value has of one of the samples; None where it has no rows for each."""
    if not isinstance(value, Tensor) or not value.ndim or not value.numel() or value.shape[0] % FEW:
        return None
    return value.chunk(FEW)[place].double()


def _culprit(op: str) -> str:
    return f"{op} mixes samples, or what it reads does" if op else MIXES


def _part(array: "np.ndarray[Any, Any]", start: int, end: int) -> "np.ndarray[Any, Any]":
    """These samples of an input; all of one without axes."""
    return array[start:end] if array.ndim else array


def _rows(executable: "Executable", batch: int, inputs: Arrays) -> list[list[Tensor]]:
    """What a run of a batch gives for each sample."""
    outputs = [torch.from_numpy(array) for array in executable.at(batch).run(*inputs)]
    return [[output.chunk(batch)[place] for output in outputs] for place in range(batch)]


def _alone(executable: "Executable", sample: Arrays) -> list[list[Tensor]]:
    """What a run of the smallest batch gives for each of copies of one sample."""
    batch = executable.batches[0]
    return _rows(executable, batch, [np.repeat(x, batch, 0) if x.ndim else x for x in sample])


def _bound(executable: "Executable", sample: Arrays, index: int, apart: float, max_error: float) -> float:
    """By how much an output may differ; where that is less than `apart`, rounding its inputs is seen to what it comes."""
    expected = _alone(executable, sample)[0][index]
    word = coarsest([dtype_word(expected.dtype), *(dtype_word(torch.from_numpy(x).dtype) for x in sample)])
    eps = EPS[word]
    allowed = bound_of(expected, max(BY_DTYPE[word].compiled, LAYERS * max_error), eps)
    if apart <= allowed:
        return allowed
    moved = (_alone(executable, [nudged(x, seed, eps) for x in sample])[0][index] for seed in range(NUDGES))
    layer = max((kernel.error or 0.0 for variant in executable.variants for kernel in variant.kernels), default=0.0)
    return max(allowed, MARGIN * max(1.0, layer / eps) * max(difference(expected, other).max_abs for other in moved))
