"""The charts of a page, each a document of bokeh; None where a page has nothing for one.

A mark is tagged with the colour of the page's style that it has, "accent" for `--accent`: the page's script paints it, in the
light and in the dark.
"""

import math
from collections.abc import Sequence
from typing import Any

from reparam_compiler.reporting.layout import Layout
from reparam_compiler.reporting.page import GraphView, KernelTable, Page, RepairView, Search, Sweep
from reparam_compiler.reporting.words import ratio_text

Figure = Any
"""Bokeh's own types refuse what its documentation shows: names of columns by keyword, a radius for all corners."""
HEIGHT = 260
"""Pixels."""
BEFORE, AFTER = ["region-line-2"], ["accent"]
"""Tags of marks."""
_LABEL = (0.15, 0.08)
"""Of the width and the height of what is seen that a label takes."""


def items(page: Page, layouts: list[Layout]) -> dict[str, dict[str, Any]]:
    """The charts that a page has, by the names of their places."""
    found: dict[str, dict[str, Any] | None] = {
        **sweep_items(page.sweep),
        "sweep-repair": sweep_repair_item(page.sweep),
        "repair": repair_item(page.repair),
        "search": search_item(page.search),
        "memory": memory_item(page, layouts),
        "roofline": roofline_item(page.kernels),
    }
    return {name: item for name, item in found.items() if item is not None}


def sweep_items(sweep: Sweep | None) -> dict[str, dict[str, Any] | None]:
    """How good each model of a sweep is, over what a run of it takes: a chart for each thing that is known (Fig. 1)."""
    from bokeh.embed import json_item

    if sweep is None:
        return {}
    panels = {
        "sweep-ms": ("ms", [point.milliseconds for point in sweep.points]),
        "sweep-multiply-adds": (
            "M multiply-adds",
            [point.multiply_adds and point.multiply_adds / 1e6 for point in sweep.points],
        ),
        "sweep-bytes": ("MiB moved", [point.bytes and point.bytes / 2**20 for point in sweep.points]),
    }
    return {name: dict(json_item(_sweep_panel(sweep, *panel))) for name, panel in panels.items() if any(panel[1])}


def _sweep_panel(sweep: Sweep, unit: str, xs: Sequence[float | None]) -> Figure:
    from bokeh.models import HoverTool

    chart = chart_of(f"sweep {unit}", unit, sweep.scored_by or "error of the outputs")
    chart.toolbar_location = None
    if not sweep.scored_by:
        chart.yaxis.formatter = _percent()
    chart.x_range.range_padding = chart.y_range.range_padding = 0.2
    pairs = (
        (x, point.score if sweep.scored_by else point.error, point.ratio) for x, point in zip(xs, sweep.points, strict=True)
    )
    dots = [(x, y, ratio) for x, y, ratio in pairs if x is not None and y is not None]
    named = _apart([(x, y) for x, y, _ in dots])
    pruned = [place for place, (_, _, ratio) in enumerate(dots) if ratio is not None]
    others = [place for place, (_, _, ratio) in enumerate(dots) if ratio is None]
    for name, places, tags in (("pruned", pruned, AFTER), ("as it came", others, BEFORE)):
        source = {
            "x": [dots[place][0] for place in places],
            "y": [dots[place][1] for place in places],
            "ratio": [ratio_text(dots[place][2]) for place in places],
            "label": [ratio_text(dots[place][2]) if place in named else "" for place in places],
        }
        chart.line("x", "y", source=source, line_width=2, tags=tags)
        drawn = chart.scatter("x", "y", source=source, size=8, tags=tags, name=f"sweep {unit} {name}")
        above = {"text_align": "center", "y_offset": -8, "text_font_size": "11px", "tags": ["ink"]}
        chart.text("x", "y", "label", source=source, **above)
        tips = [("", "@ratio"), (unit, "@x{0.000}"), (sweep.scored_by or "error", "@y{0.0000}")]
        chart.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
    return chart


def _apart(dots: Sequence[tuple[float, float]]) -> set[int]:
    """Those of some dots, the last ones first, whose labels do not lie over each other."""
    spans = [max(axis) - min(axis) or 1.0 for axis in zip(*dots, strict=True)]
    found: dict[int, tuple[float, float]] = {}
    for place, (x, y) in reversed(list(enumerate(dots))):
        at = x / spans[0], y / spans[1]
        if all(abs(at[0] - other[0]) > _LABEL[0] or abs(at[1] - other[1]) > _LABEL[1] for other in found.values()):
            found[place] = at
    return set(found)


def sweep_repair_item(sweep: Sweep | None) -> dict[str, Any] | None:
    """The error of the outputs over the ratio, before repair and after it."""
    from bokeh.embed import json_item
    from bokeh.models import HoverTool

    points = [point for point in sweep.points if point.ratio is not None] if sweep is not None else []
    points = [point for point in points if point.error is not None]
    if len(points) < 2:
        return None
    chart = chart_of("sweep repair", "% of the channels", "error of the outputs")
    for name, tags in (("before repair", BEFORE), ("after repair", AFTER)):
        errors = [point.error if name == "after repair" else point.unrepaired_error for point in points]
        source = {"x": [100 * (point.ratio or 0) for point in points], "y": errors}
        chart.line("x", "y", source=source, line_width=2, legend_label=name, tags=tags)
        dots = chart.scatter("x", "y", source=source, size=7, legend_label=name, tags=tags, name=f"errors {name}")
        chart.add_tools(HoverTool(renderers=[dots], tooltips=[(name, "@y{0.00%}"), ("channels", "@x{0.0} %")]))
    chart.y_range.start = 0
    chart.yaxis.formatter = _percent()
    chart.legend.location = "top_left"
    return dict(json_item(chart))


def repair_item(repair: RepairView | None) -> dict[str, Any] | None:
    """The error of the outputs of one pruned model, before repair and after it."""
    from bokeh.embed import json_item

    if repair is None:
        return None
    names = ["after repair", "before repair"]  # the first one stands lowest
    chart = chart_of("repair", "error of the outputs", "", y_range=names, height=130)
    for name, error, tags in zip(names, (repair.after, repair.before), (AFTER, BEFORE), strict=True):
        source = {"name": [name], "error": [error], "text": [f"{error:.2%}"]}
        chart.hbar(y="name", right="error", height=0.55, source=source, tags=tags, name=f"bar {name}")
        chart.text(
            "error", "name", "text", source=source, x_offset=6, text_baseline="middle", text_font_size="12px", tags=["ink"]
        )
    chart.x_range.start = 0
    chart.x_range.range_padding = 0.2
    chart.xaxis.formatter = _percent()
    chart.ygrid.visible = False
    return dict(json_item(chart))


def search_item(search: Search | None) -> dict[str, Any] | None:
    """What all convs of a run take at their best so far, over the measurements; None without any."""
    from bokeh.embed import json_item
    from bokeh.models import HoverTool

    if search is None or not search.curve:
        return None
    chart = chart_of("search", "measurements", "ms of all convs, alone")
    source = {
        "trial": [step.trial for step in search.curve],
        "ms": [1e3 * step.best_seconds for step in search.curve],
        "seconds": [step.seconds for step in search.curve],
    }
    line = chart.step("trial", "ms", source=source, mode="after", line_width=2, tags=AFTER, name="search curve")
    tips = [("measurement", "@trial"), ("ms", "@ms{0.000}"), ("seconds", "@seconds{0.0}")]
    chart.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline"))
    return dict(json_item(chart))


def _percent() -> Any:
    """Marks of an axis."""
    from bokeh.models import NumeralTickFormatter

    return NumeralTickFormatter(format="0%")


def memory_item(page: Page, layouts: list[Layout]) -> dict[str, Any] | None:
    """Bytes of the values that are alive, along the rows of the graph (Fig. 3); None where sizes are not known."""
    from bokeh.embed import json_item
    from bokeh.models import HoverTool

    views = [view for view in (page.before, page.after) if view is not None]
    if any(node.alive is None for view in views for node in view.nodes):
        return None
    chart = chart_of("memory", "step from the input", "MiB alive")
    for name, tags, view, layout in zip(("before", "after"), (BEFORE, AFTER), views, layouts, strict=False):
        step: dict[str, Any] = {"x": "row", "source": _memory(view, layout), "mode": "after", "tags": tags}
        chart.step(y="mib", line_width=2, legend_label=name, name=f"memory {name}", **step)
        if any(node.measured is not None for node in view.nodes):
            chart.step(y="measured", line_dash="dotted", line_width=2, legend_label=f"{name}, measured", **step)
    chart.y_range.start = 0
    chart.add_tools(
        HoverTool(tooltips=[("node", "@node"), ("MiB", "@mib{0.00}"), ("measured", "@measured{0.00}")], mode="mouse")
    )
    return dict(json_item(chart))


def _memory(view: GraphView, layout: Layout) -> dict[str, list[Any]]:
    order = sorted(range(len(view.nodes)), key=lambda place: (layout.rows[place], place))
    nodes = [view.nodes[place] for place in order]
    return {
        "row": [layout.rows[place] for place in order],
        "mib": [(node.alive or 0) / 2**20 for node in nodes],
        "measured": [node.measured and node.measured / 2**20 for node in nodes],
        "node": [node.id for node in nodes],
    }


def roofline_item(kernels: KernelTable | None) -> dict[str, Any] | None:
    """GFLOP/s over FLOP per byte, of the calls whose arithmetic and bytes are known, under what the machine can do."""
    from bokeh.embed import json_item
    from bokeh.models import HoverTool

    calls = [call for call in kernels.calls if call.flops and call.bytes and call.seconds] if kernels is not None else []
    if kernels is None or not calls:
        return None
    intensity = [call.flops / call.bytes for call in calls]
    chart = chart_of("roofline", "FLOP per byte", "GFLOP/s", log=True)
    dots = chart.scatter(
        "intensity",
        "speed",
        size="size",
        fill_alpha=0.6,
        tags=AFTER,
        name="roofline calls",
        source={
            "intensity": intensity,
            "speed": [call.flops / call.seconds / 1e9 for call in calls],
            "size": [6 + 40 * call.share**0.5 for call in calls],
            "kernel": [call.kernel for call in calls],
            "algorithm": [call.algorithm for call in calls],
            "ms": [call.seconds * 1e3 for call in calls],
        },
    )
    if kernels.peak_flops:
        ridge = [kernels.peak_flops / kernels.bandwidth] if kernels.bandwidth else []
        seen = [*intensity, *ridge]
        xs = [min(seen) / 2, *ridge, max(seen) * 2]
        roof = [min(kernels.peak_flops, x * (kernels.bandwidth or math.inf)) / 1e9 for x in xs]
        chart.line(xs, roof, line_width=2, line_dash="dashed", tags=["soft"], name="roofline roof")
    tips = [("kernel", "@kernel"), ("algorithm", "@algorithm"), ("ms", "@ms{0.000}"), ("GFLOP/s", "@speed{0.0}")]
    chart.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    return dict(json_item(chart))


def chart_of(name: str, x: str, y: str, *, log: bool = False, height: int = HEIGHT, **more: Any) -> Figure:
    from bokeh.plotting import figure

    kind: Any = "log" if log else "auto"
    chart: Figure = figure(
        name=name,
        height=height,
        sizing_mode="stretch_width",
        x_axis_label=x,
        y_axis_label=y,
        x_axis_type=kind,
        y_axis_type=kind,
        tools="pan,box_zoom,reset",
        **more,
    )
    chart.toolbar.logo = None
    chart.toolbar.autohide = True
    chart.border_fill_color = None  # white, and painted over once the style is known, it would leave a line at the edge
    return chart
