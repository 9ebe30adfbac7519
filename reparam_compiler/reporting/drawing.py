"""The canvases of the two graphs as a document of bokeh, whose data the page's script fills in; and bokeh's own script."""

from typing import TYPE_CHECKING, Any

from reparam_compiler.reporting.page import Page

if TYPE_CHECKING:
    from bokeh.models import Range1d

Figure = Any
"""Bokeh's own types refuse what its documentation shows: names of columns by keyword, a radius for all corners."""
GRAPH_HEIGHT = 680
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
    canvas.border_fill_color = None
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


def inline_script() -> str:
    """BokehJS itself, from bokeh's wheel: the page needs no network."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
