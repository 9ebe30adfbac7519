"""Every verb on a habit of a kind, and what came of it.

right     what was given back computes what it should, also at another batch where the given model takes one
refused   a typed error, or a remark of the report, says why not
n/a       the exporter refuses the habit, or the verb takes no model of the kind
failed    anything else: a bare exception, a wrong number, silence
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import reparam_compiler
from reparam_compiler.errors import ReparamError, VerificationError
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.io import save_model
from reparam_compiler.passes.pruning import pipeline
from reparam_compiler.passes.pruning.slice_channels import masked
from tests.habits.kinds import KINDS, Given, NotExported, a_folder, brief, flat, given, norms, quiet, run
from tests.habits.parts import BATCH, HABITS, OTHER_BATCH, Habit

Word = Literal["right", "refused", "n/a", "failed"]
SAMPLES = 12
COMPILED = 20
"""One habit in so many is compiled by TVM where all are sampled: that takes seconds."""
RATIO = 0.5


@dataclass(frozen=True)
class Outcome:
    """What came of a cell. text: why it is not right, or what was left as it was."""

    word: Word
    text: str = ""


RIGHT = Outcome("right")


class Wrong(Exception):
    """What a verb gave is not what it should be."""


def cells(habit: Habit, kind: str, verbs: Iterable[str]) -> dict[str, Outcome]:
    """What comes of some verbs on a habit of a kind."""
    try:
        subject = given(habit, kind, a_folder())
    except NotExported as refusal:
        return {verb: Outcome("n/a", str(refusal)) for verb in verbs}
    return {verb: outcome(subject, verb) for verb in verbs}


def outcome(subject: Given, verb: str) -> Outcome:
    """What comes of a verb on what was given."""
    try:
        with quiet(), torch.random.fork_rng(devices=[]), subject.habit.around():
            torch.manual_seed(0)
            return VERBS[verb](subject)
    except Wrong as found:
        return Outcome("failed", str(found))
    except ReparamError as refusal:
        is_defect = isinstance(refusal, VerificationError) or "lease report" in str(refusal)
        return Outcome("failed" if is_defect else "refused", brief(refusal))
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return Outcome("failed", f"a bare {brief(error)}")


def sample(name: str) -> tuple[str, tuple[str, ...]]:
    """The kind and the verbs by which `make test` knows a habit: all habits together cover the pairs.

    Each is fused and pruned in one way, and most go through a verb more; the rest is left to `make habits`.
    """
    place = [*HABITS].index(name)
    others = [verb for verb in VERBS if verb not in ("fuse", "prune", "compile")]
    kind, other = KINDS[place % len(KINDS)], others[place // len(KINDS) % len(others)]
    other = "compile" if place % COMPILED == 0 else other
    return kind, ("fuse", other) if other.startswith("prune") else ("fuse", "prune", other)


def _fuse(subject: Given) -> Outcome:
    fused, report = reparam_compiler.fuse(subject.model, subject.inputs, return_report=True)
    _check(subject, fused)
    report.to_json(), report.to_text()
    left = norms(fused, subject.habit.args(BATCH), subject.habit.kwargs(BATCH))
    if left and not report.refusals and not report.remarks:
        raise Wrong(f"{left} norms were left, and nothing said of them")
    return _said(subject, report)


def _inspect(subject: Given) -> Outcome:
    report = reparam_compiler.inspect(subject.model, subject.inputs)
    report.to_json()
    return _said(subject, report)


def _said(subject: Given, report: Any) -> Outcome:
    """Right where something was fused, or there was nothing to fuse; the text is what was said of the rest."""
    said = [f"{refusal.node}: {refusal.reason}" for refusal in report.refusals] + list(report.remarks)
    habit = subject.habit
    if not report.fusions and not said and norms(subject.model, habit.args(BATCH), habit.kwargs(BATCH)):
        raise Wrong("nothing was fused, and nothing said of it")
    return Outcome("refused" if said and not report.fusions else "right", "; ".join(said))


def _check(subject: Given, result: Any) -> None:
    """The result computes what the given model does, on the example inputs and at another batch."""
    for batch, _, expected, found in _runs(subject, result):
        _equal(expected, found, subject.habit.exact, f"at a batch of {batch}")


def _runs(subject: Given, result: Any) -> Iterator[tuple[int, Any, list[Tensor], list[Tensor]]]:
    """For each batch that the given model takes: it, the inputs, what the model gives and what the result gives."""
    habit, result = subject.habit, _kept(subject, result)
    for batch in (BATCH, OTHER_BATCH):
        args, kwargs = habit.args(batch), habit.kwargs(batch)
        expected = subject.expected(batch) if batch != BATCH else _own(subject)
        if expected is not None:
            yield batch, (args, kwargs), expected, _ran(result, args, kwargs, batch)


def _own(subject: Given) -> list[Tensor]:
    """What the given model gives for the example inputs: with nothing to compare with, nothing is right."""
    expected = subject.expected(BATCH)
    if expected is None:
        raise Wrong("the given model itself does not run")
    return expected


def _kept(subject: Given, result: Any) -> Any:
    """The result as a file that was written, for what was given as a file."""
    if not subject.kind.endswith("file"):
        return result
    path = a_folder() / f"result{subject.model.suffix}"
    save_model(result, path)
    return path


def _ran(result: Any, args: Sequence[Any], kwargs: Any, batch: int) -> list[Tensor]:
    try:
        return run(result, args, kwargs)
    except Exception as error:
        raise Wrong(f"the result does not run at a batch of {batch}: {brief(error)}") from error


def _equal(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float, where: str) -> None:
    if len(expected) != len(found):
        raise Wrong(f"{len(found)} outputs instead of {len(expected)}, {where}")
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Wrong(f"output {index} is {b.dtype} {tuple(b.shape)} instead of {a.dtype} {tuple(a.shape)}, {where}")
        apart = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
        largest = a.double().abs().max().item() if a.numel() else 0.0
        if not apart <= tolerance * max(largest, 1e-12):
            raise Wrong(f"output {index} is off by {apart / max(largest, 1e-300):.0e}, {where}")


def _prune(quality: str | None) -> Callable[[Given], Outcome]:
    def verb(subject: Given) -> Outcome:
        options: dict[str, Any] = {}
        if quality is not None:
            options = {"calibration": _calibration(subject.habit), "quality": quality}
        with _recorded() as results:
            pruned, report = reparam_compiler.prune(
                subject.model, subject.inputs, ratio=RATIO, round_to=1, return_report=True, **options
            )
        report.to_json(), report.to_text()
        (before, result) = results[-1]
        if all(family.after == family.before for family in report.plan.families):
            raise Wrong("no channel was cut, and nothing said of it")
        reference = masked(before, result.groups, result.keep) if quality is None else result.graph
        _check_pruned(subject, pruned, reference)
        return RIGHT

    return verb


def _calibration(habit: Habit) -> Any:
    """Batches as a loader gives them: of what the model is called with."""
    batches = [habit.args(batch) for batch in (SAMPLES, SAMPLES - 1)]
    return [args[0] if len(args) == 1 else args for args in batches]


@contextlib.contextmanager
def _recorded() -> Iterator[list[tuple[Graph, pipeline.PruneResult]]]:
    """The graphs that are pruned, and what comes of them."""
    found: list[tuple[Graph, pipeline.PruneResult]] = []
    prune = pipeline.prune

    def recording(graph: Graph, **options: Any) -> pipeline.PruneResult:
        found.append((graph, prune(graph, **options)))
        return found[-1][1]

    with mock.patch.object(pipeline, "prune", recording):
        yield found


def _check_pruned(subject: Given, pruned: Any, reference: Graph) -> None:
    for batch, inputs, own, found in _runs(subject, pruned):
        if [value.ndim for value in own] != [value.ndim for value in found]:  # a size may depend on values
            raise Wrong(f"outputs of other ranks at a batch of {batch}")
        expected = _evaluated(reference, inputs)
        tensors = [value for value in found if value.ndim]
        where = f"of the masked reference, at a batch of {batch}"
        _equal(_alike(expected, tensors), tensors, max(subject.habit.exact, 2e-4), where)


def _evaluated(graph: Graph, inputs: Any) -> list[Tensor]:
    """What a graph gives: its tensors that are no numbers."""
    tensors = [leaf for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    nodes = [node for node in graph if isinstance(node.op, ops.Input)]
    if len(nodes) < len(tensors):
        raise Wrong(f"the masked reference has the inputs {[node.id for node in nodes]} for {len(tensors)} tensors")
    numbers = [torch.tensor(1)] * (len(nodes) - len(tensors))  # as `kinds.run` gives those that the exporter made inputs
    given = {node.id: value for node, value in zip(nodes, [*tensors, *numbers], strict=True)}
    read = {*graph.outputs}
    for node in reversed([*graph]):
        read |= {*node.sources} if node.id in read else set()
    needed = Graph.of([node for node in graph if node.id in read or node.id in given], graph.outputs)
    try:
        return _in_pieces(needed, given)
    except ReparamError as error:
        raise Wrong(f"the masked reference cannot be evaluated: {brief(error)}") from error


def _in_pieces(graph: Graph, given: dict[str, Tensor]) -> list[Tensor]:
    """The values of a graph, of so many samples at a time as it was read with where it takes no more of them together."""

    def run(values: dict[str, Tensor]) -> list[Tensor]:
        found = evaluate(graph, values)
        return [part for node_id in graph.outputs for part in flat(found[node_id]) if part.ndim]

    try:
        return run(given)
    except ReparamError:
        first = next(node for node in graph if node.id in given)
        size = first.type.shape[0] if first.type is not None else None
        batch = len(given[first.id])
        if not isinstance(size, int) or size >= batch:
            raise
    starts = [*range(0, batch - size, size), batch - size]
    pieces = [run({key: v[start : start + size] if len(v) == batch else v for key, v in given.items()}) for start in starts]
    kept = [later - start for start, later in pairwise([*starts, batch])]
    return [torch.cat([part[:n] for part, n in zip(parts, kept, strict=True)]) for parts in zip(*pieces, strict=True)]


def _compile(subject: Given) -> Outcome:
    args = subject.habit.args(BATCH)
    executable = reparam_compiler.compile(subject.model, subject.inputs if subject.inputs is not None else args)
    tensors = [leaf for leaf in _pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    found = [torch.from_numpy(np.array(array)) for array in executable.run(*tensors)]
    _equal(_alike(_own(subject), found), found, max(subject.habit.exact, 1e-3), "compiled")
    return RIGHT


def _alike(expected: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
    """What is expected, in the dtypes of what was found."""
    return [a.to(found[index].dtype) if index < len(found) else a for index, a in enumerate(expected)]


def _equivalent(subject: Given) -> Outcome:
    """Equal to the module, and not to one of other weights; to itself where the kind is another function (as fx traced it)."""
    habit = subject.habit
    args = habit.args(BATCH)
    same = reparam_compiler.equivalent(_reference(subject), subject.model, args)
    if not same:
        raise Wrong(f"not equal to itself: {same.to_text().splitlines()[0]}")
    same.to_json()
    other = habit.make()
    with torch.inference_mode():
        for parameter in other.parameters():
            if parameter.ndim == 4:
                parameter.data.mul_(1.5)
    if reparam_compiler.equivalent(other, subject.model, args):
        raise Wrong("equal to a model of other weights")
    return RIGHT


def _reference(subject: Given) -> Any:
    made, own = replace(subject, kind="module", known={}).expected(BATCH), subject.expected(BATCH)
    with contextlib.suppress(Wrong):
        _equal(made or [], own or [], 1e-4, "")
        return subject.habit.make()
    return subject.model


def _torch_compile(subject: Given) -> Outcome:
    model = subject.model
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return Outcome("n/a", "torch.compile takes modules that are not scripted")
    habit = subject.habit
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="reparam", options={"inner": "eager"})
    for batch in (BATCH, OTHER_BATCH):
        args, kwargs = habit.args(batch), habit.kwargs(batch)
        expected = subject.expected(batch) if batch != BATCH else _own(subject)
        if expected is None:
            continue
        _equal(expected, _ran(compiled, args, kwargs, batch), habit.exact, f"at a batch of {batch}")
    return RIGHT


VERBS: dict[str, Callable[[Given], Outcome]] = {
    "fuse": _fuse,
    "inspect": _inspect,
    "prune": _prune(None),
    "prune, fast": _prune("fast"),
    "prune, standard": _prune("standard"),
    "prune, high": _prune("high"),
    "compile": _compile,
    "equivalent": _equivalent,
    "torch.compile": _torch_compile,
}
