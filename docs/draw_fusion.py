"""Draws the picture in the README: one RepVGG block as a graph, before and after `fuse_branches`.

    python docs/draw_fusion.py      writes docs/images/fusion.svg

Nothing in it is drawn by hand: the nodes are those of a traced block, before and after the pass.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.zoo.repvgg import repvgg_a0

COLOURS = {"conv": "#4c78a8", "batch_norm": "#f58518", "add": "#54a24b", "relu": "#9d9da1", "input": "#eeeeee"}


def main() -> None:
    """Traces, fuses and draws the first block that has three branches."""
    plt.switch_backend("svg")
    plt.rcParams["svg.hashsalt"] = "reparam_compiler"  # the same file from the same graph
    block = torch.nn.Sequential(*list(repvgg_a0().eval().stages[1])[1:2])
    graph = FxFrontend().read(torch.fx.symbolic_trace(block), (torch.zeros(1, 48, 14, 14),)).graph
    fused = pipeline.run(graph).graph
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), gridspec_kw={"width_ratios": [2.2, 1]})
    for axis, shown, title in ((axes[0], graph, "traced, training form"), (axes[1], fused, "after fuse()")):
        draw(axis, shown, f"{title}: {len(shown)} nodes")
    figure.tight_layout()
    target = Path(__file__).parent / "images" / "fusion.svg"
    figure.savefig(target, metadata={"Date": None})


def draw(axis: plt.Axes, graph: Graph, title: str) -> None:
    """The nodes in rows by depth, with an arrow for each edge."""
    depth: dict[str, int] = {}
    for node in graph:
        depth[node.id] = 1 + max((depth[source] for source in node.sources), default=-1)
    place = {node_id: (lane(graph, node_id), -level) for node_id, level in depth.items()}
    for node in graph:
        for source in node.sources:
            axis.annotate(
                "",
                place[node.id],
                place[source],
                arrowprops={"arrowstyle": "->", "color": "#888888", "shrinkB": 12, "zorder": 1},
            )
        box = {"boxstyle": "round,pad=0.4", "facecolor": COLOURS.get(node.op.name, "#dddddd"), "edgecolor": "none"}
        axis.text(*place[node.id], label(node), ha="center", va="center", fontsize=9, bbox=box)
    axis.set_xlim(-1.8, 1.8)
    axis.set_ylim(-max(depth.values()) - 0.6, 0.6)
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def lane(graph: Graph, node_id: str) -> float:
    """A branch keeps to its own column; a merge stands between the branches that it merges."""
    sources = graph[node_id].sources
    if not sources:
        return 0.0
    if len(sources) > 1:
        return lane(graph, sources[0]) / 2
    branches = graph.users[sources[0]]
    return lane(graph, sources[0]) + branches.index(node_id) - (len(branches) - 1) / 2


def label(node: Node) -> str:
    """`conv 3x3` for a conv, the op's name for all others."""
    if isinstance(node.op, ops.Conv):
        return f"conv {'x'.join(map(str, node.params[0].shape[2:]))}"
    return node.op.name.replace("_", " ")


if __name__ == "__main__":
    main()
