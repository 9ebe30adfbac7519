"""What the commands print: tables of a report for people, one line of JSON for machines."""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from reparam_compiler.progress import heard_by

if TYPE_CHECKING:
    from reparam_compiler.api.report import FuseReport, PruneReport
    from reparam_compiler.checking.equivalent import Equivalence
    from reparam_compiler.cost.model import Cost
    from reparam_compiler.passes.pruning.pipeline import PrunePlan

log = logging.getLogger(__name__)
_FOR_MACHINES: ContextVar[bool] = ContextVar("_FOR_MACHINES", default=False)
"""Whether the command that runs was given `--json`."""


class _Console(Console):
    """Raises where a pipe is closed; rich ends the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(as_json: bool) -> Console:
    """Where people read: stderr while stdout is for machines, nowhere where they want quiet."""
    return _Console(stderr=as_json, quiet=_is_quiet())


def _is_quiet() -> bool:
    """Whether not even warnings are wanted (`-q`)."""
    return not log.isEnabledFor(logging.WARNING)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on stderr, where that is a terminal, without -q and --json; beside it long work says how far it is."""
    out = Console(stderr=True)
    if _is_quiet() or _FOR_MACHINES.get() or not out.is_terminal:
        yield
        return
    with out.status(text) as shown, heard_by(lambda progress: shown.update(f"{text}: {progress}")):
        yield


@contextlib.contextmanager
def for_machines(as_json: bool) -> Iterator[None]:
    """No spinner meanwhile where a command has `--json`."""
    token = _FOR_MACHINES.set(as_json)
    try:
        yield
    finally:
        _FOR_MACHINES.reset(token)


def print_json(as_json: bool, record: dict[str, Any]) -> None:
    """The one line on stdout of `--json`."""
    if as_json:
        typer.echo(json.dumps(record))


def print_written(out: Console, files: Sequence[Path]) -> None:
    """The files that a model is in, and weights beside it that were of one that it replaced."""
    out.print(f"written: {', '.join(map(str, files))}", markup=False, highlight=False, soft_wrap=True)
    if files[0].suffix.lower() == ".onnx":
        from reparam_compiler.frontends.onnx.io import unread_weights

        if unread := unread_weights(files[0]):
            words = (
                f"not read by it: {', '.join(map(str, unread))}, of a model that it replaced; delete what no other model reads"
            )
            out.print(words, markup=False, highlight=False, soft_wrap=True)


def print_fusions(out: Console, report: "FuseReport", *, whole: bool = True) -> None:
    """What fused, what did not, the cost; with `whole` also how the whole was compared."""
    table = _fusion_table(report)
    refused = Table("node", "op", "the first thing in its way", title=f"{len(report.refusals)} refused", title_justify="left")
    for refusal in report.refusals:
        refused.add_row(refusal.node, refusal.op, refusal.reason)
    for part, count in ((table, len(report.fusions)), (refused, len(report.refusals))):
        out.print(part, markup=False) if count else out.print(str(part.title))
    out.print(_cost_table(report.before, report.after))
    for line in [*report.remarks, *(report.closing() if whole else [])]:
        out.print(line, markup=False, highlight=False)


def _fusion_table(report: "FuseReport") -> Table:
    """A row for each fusion: what it does before and after, and the range of its weight, which whoever quantizes wants."""
    names = ("into", "from", "weight", "its range", "multiply-adds (M)", "moved (MB)", "error")
    table = Table(
        *(Column(name, overflow="fold") for name in names),
        title=f"{report.kind}: {len(report.fusions)} fused",
        title_justify="left",
    )
    for fusion in report.fusions:
        before, after, (low, high) = fusion.before, fusion.after, fusion.weight_range
        table.add_row(
            fusion.node,
            f"{len(fusion.nodes)} nodes",
            "x".join(map(str, fusion.weight)),
            f"{low:.3g} … {high:.3g}",
            f"{before.multiply_adds / 1e6:.4g} -> {after.multiply_adds / 1e6:.4g}",
            f"{before.bytes / 1e6:.4g} -> {after.bytes / 1e6:.4g}",
            "not proven" if fusion.error is None else f"{fusion.error.max_abs:.1e}",
        )
    return table


def print_equivalence(out: Console, found: "Equivalence") -> None:
    """Whether two models are equal, by how much they differ, and on which inputs."""
    verdict, *rest = found.to_text().splitlines()
    out.print(verdict, style="green" if found else "red", markup=False, highlight=False, soft_wrap=True)
    for line in rest:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def print_pruning(out: Console, report: "PruneReport") -> None:
    """What was cut and what is pinned, the cost, the repair."""
    from reparam_compiler.api.report import gain_text, why_unrepaired

    plan = report.plan
    table = Table("channels", "before", "after", "", title=f"pruned by {plan.importance}, {_asked(plan)}", title_justify="left")
    for family in plan.families:
        table.add_row(family.name, str(family.before), str(family.after), family.note)
    for pin in plan.pinned:
        table.add_row(pin.name, str(pin.width), str(pin.width), f"{pin.reason} at {pin.node}")
    out.print(table, markup=False)
    out.print(_cost_table(report.before, report.after))
    if plan.repair is None:
        out.print(why_unrepaired(plan.gain), style="yellow", highlight=False)
        return
    out.print(f"repaired {len(plan.repair.repaired)} consumers from {plan.repair.samples_text}", highlight=False)
    if plan.gain is not None:
        out.print(gain_text(plan.gain), highlight=False)
    for consumer in plan.repair.passed_over:
        out.print(f"not repaired: {consumer.node}: {consumer.reason}", markup=False, style="yellow", highlight=False)


def _asked(plan: "PrunePlan") -> str:
    if plan.budget:
        return ", ".join(f"{share:.1%} of the {name} left" for name, share in plan.budget.items())
    return f"ratio {plan.ratio}" if plan.allocation != "by layer" else "a ratio for each layer"


def _cost_table(before: "Cost", after: "Cost") -> Table:
    from reparam_compiler.api.report import cost_rows

    table = Table("cost", "before", "after")
    for row in cost_rows(before, after):
        table.add_row(*row)
    return table
