"""Every model module of timm, and four of transformers, looked through for what `fuse` finds in them.

    python -m benchmarks.fuse_zoo [--only NAME …] [-o benchmarks/results/zoo-scan.md]

One or two small entrypoints a module, at a small resolution, with random weights (`tests/zoo/foreign_models.py`): nothing is
downloaded. Each is fused twice, by the cost model and wherever it is exact, and run in float64 before and after. A merge is an
add, concat or stack of at least two computed values: it is fused, or stays for a reason. Each model has a process of its own
and a time limit; one that fails or takes longer is a line of the table too.
"""

import argparse
import copy
import multiprocessing
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

import reparam_compiler
from benchmarks import page
from benchmarks.zoo_names import OTHERS, SHALLOW, WITH_REGIONS
from reparam_compiler.api.report import FuseReport
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models import opening
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.choices import Policy
from reparam_compiler.passes.fusion.regions import is_merge
from tests.support import foreign_models

LIMIT = 300.0
"""Seconds for one model."""
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to look at. make: it and its inputs. own: the conversion that its library has, if any."""

    name: str
    module: str
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    own: Callable[[nn.Module], nn.Module] | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many there are in a graph. norms: batch norms."""

    convs: int
    linears: int
    norms: int
    merges: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy made of a model.

    regions: fused ones that hold a merge or several convs. folded: lone convs that took up norms and constants.
    refused: for each reason, without the names in it, how many merges and norms stayed for it.
    error: of the whole model in float64, relative. proof: the worst of the regions'; None where none was asked for.
    """

    after: Counts | None
    convs: int
    regions: int
    folded: int
    refused: Mapping[str, int]
    error: float
    proof: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found in a model. route: the tracer that took it. own: its library's conversion; None where that has none."""

    name: str
    module: str
    inputs: tuple[tuple[int, ...], ...]
    route: str
    before: Counts | None
    convs: int
    own: Counts | None
    cost: Outcome
    always: Outcome
    finite: bool


def timm_subject(module: str, name: str, *, small: bool = True) -> Subject:
    """A model of timm, which has a conversion for some of its blocks; at the smallest size that it takes, or at its own."""

    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        size = None if small else foreign_models.own_size(name)
        model, x = foreign_models.timm_model(name, size, **SHALLOW.get(name, {}))
        return model, (x,)

    return Subject(name, module, make, lambda model: foreign_models.timm().utils.model.reparameterize_model(model))


def transformers_subject(name: str, *, small: bool = True) -> Subject:
    """A model of transformers, which has no conversion; small, or as its configuration has it."""

    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        model, x = foreign_models.transformers_model(name, small=small)
        return model, (x,)

    return Subject(name, "transformers", make)


def subjects() -> list[Subject]:
    """All of them."""
    modules = {**WITH_REGIONS, **OTHERS}
    of_timm = [timm_subject(module, name) for module, names in sorted(modules.items()) for name in names]
    return of_timm + [transformers_subject(name) for name in foreign_models.CONFIGURED]


def examine(subject: Subject) -> Examined:
    """Fuses a model by both policies, in float64, and counts."""
    model, inputs = subject.make()
    exact, inputs = copy.deepcopy(model).double(), tuple(x.double() for x in inputs)
    expected = outputs(exact, inputs)
    trace = whole(exact, inputs)
    graph, given = graph_of(trace, inputs), fusable(exact, trace, inputs)
    outcomes = [_outcome(given, graph, inputs, expected, policy) for policy in ("cost", "always")]
    return Examined(
        subject.name,
        subject.module,
        tuple(tuple(x.shape) for x in inputs),
        "parts" if trace is None else _route(trace),
        None if graph is None else counts(graph),
        sum(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in model.modules()),
        converted(subject, model, tuple(x.float() for x in inputs)),
        *outcomes,
        all(bool(y.isfinite().all()) for y in expected),
    )


def outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """All tensors that a model gives."""
    with torch.no_grad():
        return [value for value in _pytree.tree_leaves(model(*inputs)) if isinstance(value, Tensor)]


def worst(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest relative difference of two lists of tensors."""
    return max((difference(a, b).relative for a, b in zip(expected, found, strict=True)), default=0.0)


def counts(graph: Graph) -> Counts:
    """What is in a graph."""
    return Counts(
        sum(isinstance(node.op, ops.Conv | ops.ConvTranspose) for node in graph),
        sum(isinstance(node.op, ops.Linear) for node in graph),
        sum(isinstance(node.op, ops.BatchNorm) for node in graph),
        sum(is_merge(node) for node in graph),
    )


def reasons(report: FuseReport) -> dict[str, int]:
    """How many merges and norms stayed for each reason; names of nodes are left out of it, or `…`."""
    found = Counter(f"{refusal.op}: {_unnamed(refusal.reason)}" for refusal in report.refusals)
    return dict(found.most_common())


def _unnamed(reason: str) -> str:
    known = re.sub(r"^\S+ \((\S+)\) is not linear$", r"\1 is not linear", reason)
    known = re.sub(r"^\S+ is also read by \S+$", "also read elsewhere", known)
    known = re.sub(r" at [\w./]+$", "", known)
    known = re.sub(r"^\S+ (has an unknown|reads no|is an output)", r"… \1", known)
    return re.sub(r"\d[\d.e+]*", "n", known)


def _outcome(
    model: nn.Module, before: Graph | None, inputs: tuple[Tensor, ...], expected: Sequence[Tensor], policy: Policy
) -> Outcome:
    start = time.perf_counter()
    fused, report = reparam_compiler.fuse(model, inputs, policy=policy, return_report=True)
    seconds = time.perf_counter() - start
    graph = graph_of(fused, inputs)
    whole = [f for f in report.fusions if before is not None and _is_region(before, f.nodes)]
    return Outcome(
        None if graph is None else counts(graph),
        report.after.convs,
        len(whole),
        len(report.fusions) - len(whole),
        reasons(report),
        worst(expected, outputs(fused, inputs)),
        None if report.max_error is None else report.max_error.relative,
        seconds,
    )


def _is_region(graph: Graph, nodes: Sequence[str]) -> bool:
    held = [graph[name] for name in nodes if name in graph.nodes]
    kernels = sum(isinstance(node.op, ops.Conv | ops.ConvTranspose | ops.Linear) for node in held)
    return kernels > 1 or any(map(is_merge, held))


def graph_of(model: Any, inputs: tuple[Tensor, ...] | None) -> Graph | None:
    """What a frontend reads in a traced model, with shapes where they can be traced anew; None for one that is in parts."""
    if not isinstance(model, fx.GraphModule):
        return None
    try:
        return frontend_for(model).read(model, inputs).graph
    except UnsupportedModelError:
        return frontend_for(model).read(model, None).graph


def fusable(model: nn.Module, trace: fx.GraphModule | None, inputs: tuple[Tensor, ...]) -> nn.Module:
    """What to give to `fuse`: the trace, so that it is not traced again; the model where it has none that can be read alone."""
    try:
        return model if trace is None or frontend_for(trace).read(trace, inputs) is None else trace
    except UnsupportedModelError:
        return model


def whole(model: nn.Module, inputs: tuple[Tensor, ...] | None, *, copy: bool = True) -> fx.GraphModule | None:
    """A model traced or exported as a whole; None where neither takes it."""
    try:
        found: fx.GraphModule = opening.open(model, inputs, copy=copy).native
    except UnsupportedModelError:
        return None
    return found


def _route(trace: fx.GraphModule) -> str:
    return "export" if any(isinstance(node.target, torch._ops.OpOverload) for node in trace.graph.nodes) else "fx"


def converted(subject: Subject, model: nn.Module, inputs: tuple[Tensor, ...]) -> Counts | None:
    """What is left after the library's own conversion; None where it has none."""
    if subject.own is None:
        return None
    result = subject.own(copy.deepcopy(model))
    graph = graph_of(whole(result, None) or whole(result, inputs), None)
    return None if graph is None else counts(graph)


def boxed(function: Callable[..., Found], *arguments: Any, limit: float = LIMIT) -> Found | str:
    """What a function gives in a process of its own, on one thread; why there is nothing where it failed or took longer."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(function, arguments, sender))
    process.start()
    sender.close()
    try:
        found: Found | str = receiver.recv() if receiver.poll(limit) else f"took more than {limit:.0f} s"
    except EOFError:
        found = "its process died"
    process.kill()
    process.join()
    return found


def _send(function: Callable[..., object], arguments: Sequence[Any], sender: Connection) -> None:
    torch.set_num_threads(1)  # two would wait for each other wherever another process has one of the cores
    try:
        sender.send(function(*arguments))
    except Exception as error:  # noqa: BLE001 - the line of this model says what happened; the others go on
        sender.send(f"{type(error).__name__}: {error}".split("\n")[0][:300])


HEAD = (
    "| module | model | traced by | merges found | fused | refused | convs | cost | always | own | norms left | error | s |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def line(subject: Subject, found: Examined | str) -> str:
    """A row of the table."""
    if isinstance(found, str):
        return f"| {subject.module} | {subject.name} | {found} |" + " |" * 10
    before, after = found.before, found.cost.after
    merges = ("?", "?", "?")
    if before is not None and after is not None:
        merges = (str(before.merges), str(before.merges - after.merges), str(after.merges))
    cells = [
        found.module,
        found.name,
        found.route,
        *merges,
        str(before.convs if before is not None else found.convs),
        str(found.cost.convs),
        str(found.always.convs),
        "" if found.own is None else str(found.own.convs),
        "?" if after is None else str(after.norms),
        f"{max(found.cost.error, found.always.error):.1e}",
        f"{found.cost.seconds:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints a line for each model, with what was refused below it, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="names of models or modules")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each model")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = [s for s in subjects() if not arguments.only or {s.name, s.module} & {*arguments.only}]
    lines, record = list(HEAD), {}
    print("\n".join(HEAD))
    for subject in chosen:
        found = boxed(examine, subject, limit=arguments.limit)
        lines.append(line(subject, found))
        record[subject.name] = found if isinstance(found, str) else asdict(found)
        print(lines[-1], flush=True)
        if not isinstance(found, str):
            for reason, count in found.cost.refused.items():
                print(f"      {count} x {reason}")
        if arguments.output:
            _write(arguments.output, lines, record)


def _write(output: Path, lines: Sequence[str], record: Mapping[str, Any]) -> None:
    head = page.head("What fuse finds in timm and transformers", page.facts(f"python -m benchmarks.fuse_zoo -o {output}"))
    page.write(output, head + "\n".join(lines) + "\n", record)


if __name__ == "__main__":
    main()
