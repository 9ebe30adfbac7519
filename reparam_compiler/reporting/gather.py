"""A page from what `fuse`, `prune` and `compile` report."""

import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reparam_compiler.api.report import FuseReport, Graphs, PruneReport, gain_text, why_unrepaired
from reparam_compiler.core.packages import installed_version
from reparam_compiler.cost.model import Cost, cost
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import Graph
from reparam_compiler.passes.fusion.fuse_branches import Fusion, Refusal
from reparam_compiler.passes.pruning.pipeline import PrunePlan
from reparam_compiler.reporting.equations import rules_of
from reparam_compiler.reporting.matching import names_in, renamed
from reparam_compiler.reporting.page import (
    FamilyView,
    Figure,
    GraphView,
    Page,
    Provenance,
    RefusalView,
    Region,
    RepairedLayer,
    RepairView,
)
from reparam_compiler.reporting.views import layers_of, op_counts, view_of

_PACKAGES = ("reparam_compiler", "torch", "numpy", "onnx", "onnxruntime", "apache-tvm")
UNKNOWN = Provenance("", {}, {})


def provenance(command: str, files: Sequence[str | Path] = (), graph: Graph | None = None) -> Provenance:
    """What made a report: a command, the versions of what is installed, and what it read.

    files: models; those that are no files (a factory) have no hash. graph: its weights are hashed as well.
    """
    hashes = {str(file): _file_hash(Path(file)) for file in files if Path(file).is_file()}
    if graph is not None:
        hashes["weights"] = _weights_hash(graph)
    versions = {name: found for name in _PACKAGES if (found := installed_version(name)) is not None}
    return Provenance(command, {"python": sys.version.split()[0], **versions}, hashes)


def provenance_here(*models: str, graph: Graph | None = None) -> Provenance:
    """The same, of the command that this process runs."""
    module = sys.modules["__main__"].__spec__  # of what `python -m` runs
    program = Path(sys.argv[0]).name if module is None else f"python -m {module.name.removesuffix('.__main__')}"
    return provenance(f"{program} {shlex.join(sys.argv[1:])}", models, graph)


def title_of(model: str) -> str:
    """A model's name without its folder and suffix, or that of its factory."""
    return model.rpartition(":")[2] if ":" in model else Path(model).stem


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_hash(graph: Graph) -> str:
    """Of the elements of all parameters, in the order in which they are first read."""
    digest = hashlib.sha256()
    for param in graph.param_users:
        digest.update(f"{param.role} {param.dtype} {param.shape}".encode())
        digest.update(param.float64().tobytes())
    return digest.hexdigest()


def page_of_fusing(title: str, report: FuseReport, made: Provenance = UNKNOWN) -> Page:
    """The page of what `fuse` or `inspect` did.

    Raises UnsupportedModelError for a report that has no graphs.
    """
    graphs = _graphs(report)
    page = _page(title, report.kind, made, graphs, (report.before, report.after), report.fusions, report.refusals)
    page = replace(page, accuracy=tuple(report.closing()), remarks=report.remarks)
    return page if report.fusions else _as_it_is(page)


def page_of_pruning(title: str, report: PruneReport, fused: FuseReport | None = None, made: Provenance = UNKNOWN) -> Page:
    """The page of what `prune` did, and `fuse` before it.

    Raises UnsupportedModelError for a report that has no graphs.
    """
    graphs, start = _graphs(report), report.before
    if fused is not None:
        names = names_in(graphs.before, _graphs(fused).after)
        graphs, start = Graphs(_graphs(fused).before, renamed(graphs.after, names)), fused.before
    fusions, refusals = (fused.fusions, fused.refusals) if fused is not None else ((), ())
    page = _page(title, report.kind, made, graphs, (start, report.after), fusions, refusals)
    remarks = (*(fused.remarks if fused is not None else ()), *report.remarks)
    return replace(
        page,
        accuracy=_pruned_accuracy(report.plan),
        remarks=tuple(dict.fromkeys(remarks)),
        families=_families(report.plan),
        repair=_repair(report.plan),
    )


def page_of_models(title: str, kind: str, before: Graph, after: Graph | None, made: Provenance = UNKNOWN) -> Page:
    """The page of a model, or of two that somebody else made one of the other."""
    graphs = Graphs(before, after if after is not None else before)
    page = _page(title, kind, made, graphs, (cost(before), cost(graphs.after)), (), ())
    return page if after is not None else _as_it_is(page)


def page_without_graph(title: str, why: str, made: Provenance = UNKNOWN) -> Page:
    """The page of a model that cannot be read. why: a remark."""
    return Page(title, "", made, (), GraphView((), ()), None, (), (), (), (), (), remarks=(why,))


def _as_it_is(page: Page) -> Page:
    """The page of a model that nothing was done to."""
    figures = tuple(replace(figure, after=None) for figure in page.figures)
    return replace(page, after=None, figures=figures, ops=tuple(replace(op, after=None) for op in page.ops))


def _graphs(report: FuseReport | PruneReport) -> Graphs:
    if report.graphs is None:
        raise UnsupportedModelError("found a report of a model that was changed in place; expected one with inplace=False")
    return report.graphs


def _page(
    title: str,
    kind: str,
    made: Provenance,
    graphs: Graphs,
    costs: tuple[Cost, Cost],
    fusions: Sequence[Fusion],
    refusals: Sequence[Refusal],
) -> Page:
    regions = regions_of(graphs.before, fusions)
    before, after = view_of(graphs.before), view_of(graphs.after)
    return Page(
        title=title,
        kind=kind,
        made=made,
        figures=(*_figures(*costs), *_measured_memory(before, after)),
        before=before,
        after=after,
        regions=regions,
        refusals=tuple(RefusalView(refusal.node, refusal.op, refusal.reason) for refusal in refusals),
        ops=op_counts(graphs.before, graphs.after),
        layers=layers_of(graphs.after, regions),
        accuracy=(),
    )


def regions_of(before: Graph, fusions: Sequence[Fusion]) -> tuple[Region, ...]:
    """The regions of fusions; one that took in what an earlier one made is one region with it."""
    found: dict[str, Region] = {}
    for fusion in fusions:
        region = _region(before, fusion)
        for taken in [found.pop(name) for name in fusion.nodes if name in found]:
            region = _with(region, taken, before)
        found[region.node] = region
    place = before.position
    return tuple(sorted(found.values(), key=lambda region: place.get(region.nodes[-1], len(place))))


def _region(before: Graph, fusion: Fusion) -> Region:
    return Region(
        nodes=fusion.nodes,
        node=fusion.node,
        source=fusion.source,
        op=fusion.op,
        type=fusion.shape,
        weight=fusion.weight,
        weight_range=fusion.weight_range,
        rules=rules_of(before, fusion.nodes, fusion.source),
        error=fusion.error.relative if fusion.error is not None else None,
        multiply_adds=(fusion.before.multiply_adds, fusion.after.multiply_adds),
        bytes=(fusion.before.bytes, fusion.after.bytes),
    )


def _with(region: Region, taken: Region, before: Graph) -> Region:
    """A region with the one whose op it took in."""
    nodes = tuple(dict.fromkeys((*taken.nodes, *region.nodes)))
    multiply_adds, moved = (
        (new[0] - old[1] + old[0], new[1])
        for new, old in ((region.multiply_adds, taken.multiply_adds), (region.bytes, taken.bytes))
    )
    errors = [error for error in (region.error, taken.error) if error is not None]
    return replace(
        region,
        nodes=nodes,
        rules=rules_of(before, nodes, region.source),
        error=max(errors, default=None),
        multiply_adds=multiply_adds,
        bytes=moved,
    )


def _figures(before: Cost, after: Cost) -> tuple[Figure, ...]:
    rows: Mapping[str, tuple[str, float | None, float | None]] = {
        "convs": ("", before.convs, after.convs),
        "parameters": ("", before.params, after.params),
        "multiply-adds": ("", before.flops, after.flops),
        "multiplications with Winograd": ("", before.winograd_muls, after.winograd_muls),
        "activation memory": ("B", before.activation_bytes, after.activation_bytes),
    }
    return tuple(
        Figure(name, unit, float(old), float(new))
        for name, (unit, old, new) in rows.items()
        if old is not None and new is not None
    )


def _measured_memory(before: GraphView, after: GraphView) -> tuple[Figure, ...]:
    """The most that torch held at one time; nothing where either was not run."""
    most = [max((node.measured or 0 for node in view.nodes), default=0) for view in (before, after)]
    return (Figure("measured in torch", "B", float(most[0]), float(most[1])),) if all(most) else ()


def _pruned_accuracy(plan: PrunePlan) -> tuple[str, ...]:
    lines = [f"equals its masked reference in float64: differs by at most {plan.relative_error:.1e} (relative), before repair"]
    if plan.repair is None:
        return (*lines, why_unrepaired(plan.gain))
    lines.append(f"repaired {len(plan.repair.repaired)} layers ({plan.repair.how}) from {plan.repair.samples_text}")
    return (*lines, *((gain_text(plan.gain),) if plan.gain is not None else ()))


def _repair(plan: PrunePlan) -> RepairView | None:
    """None without samples that were held out."""
    if (gain := plan.gain) is None:
        return None
    repaired = plan.repair.repaired if plan.repair is not None else ()
    layers = tuple(RepairedLayer(layer.node, layer.removed, layer.unexplained) for layer in repaired)
    return RepairView(gain.samples, gain.before, gain.after, plan.repair is not None, layers)


def _families(plan: PrunePlan) -> tuple[FamilyView, ...]:
    cut = [FamilyView(family.name, family.before, family.after, family.members, "") for family in plan.families]
    pinned = [FamilyView(pin.name, pin.width, pin.width, (), f"{pin.reason} at {pin.node}") for pin in plan.pinned]
    return (*cut, *pinned)
