"""The canvases of a page, as bokeh's documents: the two graphs, whose data the page's script fills in, and the charts."""

from typing import TYPE_CHECKING, Any

from reparam_compiler.reporting.layout import Layout
from reparam_compiler.reporting.page import GraphView, KernelTable, Page

if TYPE_CHECKING:
    from bokeh.models import Range1d

Figure = Any
"""Bokeh's own types refuse what its documentation shows: names of columns by keyword, a radius for all corners."""
GRAPH_HEIGHT, CHART_HEIGHT = 680, 260
"""Pixels."""
_PLACE = ("x", "y", "w", "h")
COLUMNS = {
    "bands": (*_PLACE, "fill", "line"),
    "edges": ("xs", "ys", "line", "wide"),
    "boxes": (*_PLACE, "fill", "line", "wide", "text", "ink", "tip"),
    "chosen": _PLACE,
}
"""What the script fills in, for each kind of mark."""


def graphs_item(page: Page) -> dict[str, Any]:
    """Two canvases over one range of rows, which the page's script fills, in the colours of its style."""
    from bokeh.embed import json_item
    from bokeh.layouts import row
    from bokeh.models import Range1d

    rows = Range1d(start=-GRAPH_HEIGHT, end=0)
    names = ["before"] if page.after is None else ["before", "after"]
    return dict(json_item(row([_canvas(name, rows) for name in names], sizing_mode="stretch_width", name="graphs")))


def _canvas(name: str, rows: "Range1d") -> Figure:
    """An empty canvas. Its marks lie over each other in this order, and are found by their names."""
    from bokeh.models import ColumnDataSource, HoverTool, PanTool, Range1d
    from bokeh.plotting import figure

    columns = Range1d(start=0, end=600)
    canvas: Figure = figure(name=name, height=GRAPH_HEIGHT, x_range=columns, y_range=rows, tools=[PanTool()])
    canvas.sizing_mode, canvas.toolbar_location, canvas.min_border = "stretch_width", None, 0
    canvas.axis.visible = canvas.grid.visible = False
    mark = {
        part: {"source": ColumnDataSource({column: [] for column in columns}), "name": f"{name} {part}"}
        for part, columns in COLUMNS.items()
    }
    place = {"x": "x", "y": "y", "width": "w", "height": "h"}
    colours = {"fill_color": "fill", "line_color": "line"}
    canvas.rect(**place, **colours, **mark["bands"], border_radius=8)
    canvas.multi_line("xs", "ys", **mark["edges"], line_color="line", line_width="wide")
    boxes = canvas.rect(**place, **colours, **mark["boxes"], line_width="wide", border_radius=5)
    texts = {**mark["boxes"], "name": f"{name} texts", "text_align": "center", "text_baseline": "middle"}
    canvas.text("x", "y", text="text", **texts, text_color="ink", text_font_size="12px")
    canvas.rect(**place, **mark["chosen"], fill_color=None, line_width=3, border_radius=7)
    canvas.add_tools(HoverTool(renderers=[boxes], tooltips="@tip", attachment="right"))
    return canvas


def memory_item(page: Page, layouts: list[Layout]) -> dict[str, Any] | None:
    """Bytes of the values that are alive, along the rows of the graph (Fig. 3); None where sizes are not known."""
    from bokeh.embed import json_item
    from bokeh.models import HoverTool

    views = [view for view in (page.before, page.after) if view is not None]
    if any(node.alive is None for view in views for node in view.nodes):
        return None
    chart = _chart("memory", "step from the input", "MiB alive")
    for name, view, layout in zip(("before", "after"), views, layouts, strict=False):
        chart.step(
            "row", "mib", source=_memory(view, layout), mode="after", line_width=2, legend_label=name, name=f"memory {name}"
        )
    chart.y_range.start = 0
    chart.add_tools(HoverTool(tooltips=[("node", "@node"), ("MiB", "@mib{0.00}")], mode="mouse"))
    return dict(json_item(chart))


def _memory(view: GraphView, layout: Layout) -> dict[str, list[Any]]:
    order = sorted(range(len(view.nodes)), key=lambda place: (layout.rows[place], place))
    nodes = [view.nodes[place] for place in order]
    return {
        "row": [layout.rows[place] for place in order],
        "mib": [(node.alive or 0) / 2**20 for node in nodes],
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
    chart = _chart("roofline", "FLOP per byte", "GFLOP/s", log=True)
    dots = chart.scatter(
        "intensity",
        "speed",
        size="size",
        fill_alpha=0.6,
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
        ends = [min(intensity) / 2, max(intensity) * 2]
        roof = [
            min(kernels.peak_flops, x * kernels.bandwidth) / 1e9 if kernels.bandwidth else kernels.peak_flops / 1e9
            for x in ends
        ]
        ridge = [kernels.peak_flops / kernels.bandwidth] if kernels.bandwidth else []
        xs = [ends[0], *(x for x in ridge if ends[0] < x < ends[1]), ends[1]]
        ys = [roof[0], *(kernels.peak_flops / 1e9 for _ in xs[1:-1]), roof[1]]
        chart.line(xs, ys, line_width=2, line_dash="dashed", name="roofline roof")
    tips = [("kernel", "@kernel"), ("algorithm", "@algorithm"), ("ms", "@ms{0.000}"), ("GFLOP/s", "@speed{0.0}")]
    chart.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    return dict(json_item(chart))


def _chart(name: str, x: str, y: str, *, log: bool = False) -> Figure:
    from bokeh.plotting import figure

    kind: Any = "log" if log else "auto"
    chart: Figure = figure(
        name=name,
        height=CHART_HEIGHT,
        sizing_mode="stretch_width",
        x_axis_label=x,
        y_axis_label=y,
        x_axis_type=kind,
        y_axis_type=kind,
        tools="pan,box_zoom,reset",
    )
    chart.toolbar.logo = None
    chart.toolbar.autohide = True
    return chart


def inline_script() -> str:
    """BokehJS itself, from bokeh's wheel: the page needs no network."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
