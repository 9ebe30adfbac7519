"""A page in a terminal: the same numbers and reasons, without the picture."""

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from reparam_compiler.reporting.page import Page
from reparam_compiler.reporting.words import percent, ratio_text, short, sizes


def print_page(out: Console, page: Page) -> None:
    """Prints what a page says, a table a section."""
    out.print(f"[bold]{escape(page.title)}[/]  {page.kind}", highlight=False)
    out.print(_figures(page))
    for line in (*page.accuracy, *page.remarks):
        out.print(line, markup=False, highlight=False)
    for table in (
        _regions(page),
        _refusals(page),
        _families(page),
        _repair(page),
        _sweep(page),
        _search(page),
        _kernels(page),
        _ops(page),
    ):
        if table.row_count:
            out.print(table, markup=False)
    for name, value in ({**page.made.hashes, **page.made.versions} if page.made.command else {}).items():
        out.print(f"{name} {value}", markup=False, highlight=False, style="dim", soft_wrap=True)


def _table(title: str, *columns: str, numbers: int = 0) -> Table:
    """A table whose last columns are numbers."""
    split = len(columns) - numbers
    heads = [Column(name, overflow="fold", justify="left" if place < split else "right") for place, name in enumerate(columns)]
    return Table(*heads, title=title, title_justify="left")


def _figures(page: Page) -> Table:
    table = _table("summary", "", "before", "after", "", numbers=3)
    for figure in page.figures:
        after = figure.before if figure.after is None else figure.after
        change = percent(figure.before, after) if after != figure.before else ""
        table.add_row(figure.name, short(figure.before, figure.unit), short(after, figure.unit), change)
    return table


def _regions(page: Page) -> Table:
    table = _table(f"{len(page.regions)} fused", "into", "rules", "weight", "nodes", "multiply-adds", "error", numbers=3)
    for region in page.regions:
        rules = "; ".join(rule.name for rule in region.rules)
        done = " -> ".join(map(short, region.multiply_adds))
        error = "not proven" if region.error is None else f"{region.error:.1e}"
        table.add_row(region.node, rules, sizes(region.weight), str(len(region.nodes)), done, error)
    return table


def _refusals(page: Page) -> Table:
    table = _table(f"{len(page.refusals)} refused", "node", "op", "the first thing in its way")
    for refusal in page.refusals:
        table.add_row(refusal.node, refusal.op, refusal.reason)
    return table


def _families(page: Page) -> Table:
    table = _table("channels", "family", "pinned", "before", "kept", numbers=2)
    for family in page.families:
        table.add_row(family.name, family.pinned, str(family.before), str(family.after))
    return table


def _repair(page: Page) -> Table:
    table = _table("error of the outputs", "", "", numbers=1)
    if page.repair is not None:
        table.add_row("before repair", f"{page.repair.before:.2%}")
        table.add_row("after repair" if page.repair.kept else "after repair, left out", f"{page.repair.after:.2%}")
    return table


def _sweep(page: Page) -> Table:
    sweep = page.sweep
    measures = ["error", "before repair", "ms", "multiply-adds", "moved"]
    if sweep is not None and sweep.scored_by:
        measures.insert(0, sweep.scored_by)
    table = _table("by ratio", "channels removed", *measures, numbers=len(measures))
    for point in sweep.points if sweep is not None else ():
        if point.refused:
            table.add_row(f"{ratio_text(point.ratio)}: {point.refused}")
            continue
        scores = [] if point.score is None else [f"{point.score:.4f}"]
        errors = ["" if error is None else f"{error:.1%}" for error in (point.error, point.unrepaired_error)]
        taken = "" if point.milliseconds is None else f"{point.milliseconds:.3f}"
        table.add_row(ratio_text(point.ratio), *scores, *errors, taken, short(point.multiply_adds), short(point.bytes, "B"))
    return table


def _search(page: Page) -> Table:
    numbers = ("calls", "trials", "ms by rule", "ms at best")
    table = _table("search", "kernel", "taken", "decided by", *numbers, numbers=len(numbers))
    for layer in page.search.layers if page.search is not None else ():
        taken = ["" if seconds is None else f"{1e3 * seconds:.4f}" for seconds in (layer.rule_seconds, layer.best_seconds)]
        table.add_row(layer.name, layer.taken, layer.decided, str(layer.count), str(layer.trials), *taken)
    return table


def _kernels(page: Page) -> Table:
    table = _table("time", "kernel", "algorithm", "ms", "share", "GFLOP/s", numbers=3)
    for call in page.kernels.calls if page.kernels is not None else ():
        speed = f"{call.flops / call.seconds / 1e9:.1f}" if call.flops and call.seconds else ""
        table.add_row(call.kernel, call.algorithm, f"{call.seconds * 1e3:.3f}", f"{call.share:.1%}", speed)
    return table


def _ops(page: Page) -> Table:
    table = _table("ops", "op", "before", "after", numbers=2)
    for op in page.ops:
        table.add_row(op.op, str(op.before), str(op.before if op.after is None else op.after))
    return table
