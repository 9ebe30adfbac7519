"""A page as one HTML file that needs no network: the data as JSON, bokeh's script, and one script and one style of ours."""

import json
from collections.abc import Sequence
from typing import Any

from reparam_compiler.reporting import charts, drawing
from reparam_compiler.reporting.blocks import grouped, prefixes
from reparam_compiler.reporting.layout import Layout, side_by_side
from reparam_compiler.reporting.page import Page
from reparam_compiler.reporting.schema import as_record
from reparam_compiler.reporting.words import percent, ratio_text, short, sizes


def to_html(page: Page) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    layouts = side_by_side(page.before, page.after, page.regions)
    drawn = charts.items(page, layouts)
    templates = Environment(
        loader=PackageLoader("reparam_compiler.reporting"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"short": short, "sizes": sizes, "percent": percent, "ratio": ratio_text}
    return templates.get_template("page.html.j2").render(
        page=page,
        data=_in_script(page),
        scene=_in_script(_scene(page, layouts)),
        charts=_in_script({"graphs": drawing.graphs_item(page), **drawn}),
        drawn=set(drawn),
        bokeh=drawing.inline_script(),
    )


def _scene(page: Page, layouts: Sequence[Layout]) -> dict[str, Any]:
    """Where the nodes stand and which groups they are in, for the script."""
    grouping = grouped(page.before)
    known = {group.name for group in grouping.groups}
    graphs = []
    for view, layout in zip((page.before, page.after), layouts, strict=False):
        assert view is not None
        chains = [
            grouping.chains.get(node.id) or tuple(name for name in prefixes(node.path) if name in known) for node in view.nodes
        ]
        edges = [(edge.source, edge.target, edge.bends) for edge in layout.edges]
        graphs.append({"columns": layout.columns, "rows": layout.rows, "edges": edges, "chains": chains})
    return {"graphs": graphs, "groups": grouping.groups, "opened": grouping.opened}


def _in_script(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends one."""
    text = json.dumps(value, default=as_record, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")
