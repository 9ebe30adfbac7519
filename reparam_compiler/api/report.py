"""What was done to a model and what was not, and why: as text for people, as JSON for machines."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

from reparam_compiler.advice import in_words_of, option
from reparam_compiler.cost.model import Cost
from reparam_compiler.interpreter.difference import Difference
from reparam_compiler.ir.graph import Graph, Node
from reparam_compiler.passes.fusion.fuse_branches import Fusion, Refusal
from reparam_compiler.passes.pruning.manifest import Manifest
from reparam_compiler.passes.pruning.pipeline import PrunePlan
from reparam_compiler.passes.pruning.repair.gain import Gain


@dataclass(frozen=True, slots=True)
class WholeModel:
    """The model before and after, run whole. how: the runtime, the dtype and the inputs, in words."""

    how: str
    difference: Difference


@dataclass(frozen=True, slots=True, eq=False)
class Graphs:
    """The graph of a model before and after, for who draws it; their parameters are those of the model, and are kept by it."""

    before: Graph
    after: Graph


@dataclass(frozen=True, slots=True, repr=False)
class FuseReport:
    """What `fuse` did.

    kind: the kind of model. fusions: what was rewritten. refusals: merges and norms that stayed.
    before, after: what the model costs. whole_model: None where the whole was not compared; not_compared: why it was not.
    remarks: what the caller should know besides. graphs: None where the caller's model was changed in place.
    """

    kind: str
    fusions: tuple[Fusion, ...]
    refusals: tuple[Refusal, ...]
    before: Cost
    after: Cost
    whole_model: WholeModel | None = None
    remarks: tuple[str, ...] = field(default=())
    not_compared: str = ""
    graphs: Graphs | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"<FuseReport {self._head()[0]}{_convs(self.before, self.after)}>"

    @property
    def max_error(self) -> Difference | None:
        """The largest difference of a rewritten region and what it replaced; None where none was proven."""
        errors = [fusion.error for fusion in self.fusions if fusion.error is not None]
        return max(errors, key=lambda error: error.relative) if errors else None

    def to_json(self) -> str:
        """The report as a JSON object, with the fields of this class but the graphs."""
        fields = asdict(replace(self, graphs=None))
        del fields["graphs"]
        return json.dumps(fields, indent=2)

    def to_text(self) -> str:
        """The report as text, a line for each fusion and each refusal."""
        return "\n".join(
            [
                *self._head(),
                *map(_fusion_line, self.fusions),
                *map(_refusal_line, self.refusals),
                *self.remarks,
                *self.closing(),
            ]
        )

    def _head(self) -> list[str]:
        lines = [f"{self.kind}: {len(self.fusions)} fused, {len(self.refusals)} refused"]
        return [*lines, *cost_lines(self.before, self.after)]

    def closing(self) -> list[str]:
        """What is known of how exact the result is: of the regions that were fused, and of the whole model."""
        lines = []
        if self.max_error is not None:
            lines.append(f"every fused region proven in float64: differs by at most {self.max_error.relative:.1e} (relative)")
        elif self.fusions:
            lines.append(f"the fused regions were not proven ({option('verify', False)})")
        if self.whole_model is None:
            lines.append(f"the whole model was not compared: {self.not_compared or 'no example inputs were given'}")
        else:
            worst = self.whole_model.difference
            lines.append(
                f"the whole model differs by {worst.max_abs:.3g} ({worst.relative:.1e} relative): {self.whole_model.how}"
            )
        return lines


@dataclass(frozen=True, slots=True, repr=False)
class PruneReport:
    """What `prune` did: the plan with every family, what the model costs before and after, and what was kept, to save.

    remarks: what the caller should know besides. graphs: None where the caller's model was changed in place.
    """

    kind: str
    plan: PrunePlan
    before: Cost
    after: Cost
    manifest: Manifest
    remarks: tuple[str, ...] = field(default=())
    graphs: Graphs | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"<PruneReport {self._head()}{_convs(self.before, self.after)}>"

    def to_json(self) -> str:
        """The report as a JSON object, with the fields of this class but graphs and manifest, which has a file of its own."""
        costs = {"before": asdict(self.before), "after": asdict(self.after)}
        return json.dumps({"kind": self.kind, "plan": asdict(self.plan), **costs, "remarks": self.remarks}, indent=2)

    def to_text(self) -> str:
        """The report as text: a line for each family that was cut, and for each that had to keep its width."""
        plan = self.plan
        lines = [self._head()]
        lines += cost_lines(self.before, self.after)
        lines += [f"  {share:.1%} of the {name} remain" for name, share in plan.budget.items()]
        lines.append(f"  ranked by {plan.importance}, allotted {plan.allocation}, widths to multiples of {plan.round_to}")
        for family in plan.families:
            note = f"  ({family.note})" if family.note else ""
            lines.append(f"  cut      {family.name}: {family.before} -> {family.after} channels{note}")
        lines += [f"  pinned   {pin.name}: {pin.width} channels, {pin.reason} at {pin.node}" for pin in plan.pinned]
        lines.append(
            f"equals its masked reference in float64: differs by at most {plan.relative_error:.1e} (relative), before repair"
        )
        return "\n".join([*lines, *self._repair_lines(), *self.remarks])

    def _head(self) -> str:
        cut = [family for family in self.plan.families if family.after < family.before]
        return f"{self.kind}: {len(cut)} of {len(self.plan.families)} families cut, {len(self.plan.pinned)} pinned"

    def _repair_lines(self) -> list[str]:
        repair = self.plan.repair
        if repair is None:
            return [why_unrepaired(self.plan.gain)]
        lines = [f"repaired {len(repair.repaired)} convs and linears ({repair.how}) from {repair.samples_text}"]
        lines += [gain_text(self.plan.gain)] if self.plan.gain is not None else []
        return lines + [f"  not repaired  {consumer.node}: {consumer.reason}" for consumer in repair.passed_over]


def gain_text(gain: Gain) -> str:
    """What repair gained as a sentence, or that it is left out for what it would have cost."""
    off = f"on {gain.samples} held-out samples the outputs are off by {gain.before:.1%}"
    if not gain.is_worse:
        return f"{off} before repair, by {gain.after:.1%} after"
    return (
        f"not repaired: {off}, with repair by {gain.after:.1%}, and it was left out; "
        "more samples, or such as the model will see, may make it worth while"
    )


def why_unrepaired(gain: Gain | None) -> str:
    """Why a cut is not repaired: repair would have done harm, or there was no data; then what that costs, and prevents it."""
    if gain is not None:
        return gain_text(gain)
    data = in_words_of(python="calibration=...", command="--calibration")
    return (
        "not repaired: no calibration data was given. A fused net has no batch norm left to recalibrate, and at a third of its "
        f"channels it usually falls to chance; 32 samples of real input are enough to prevent that ({data})"
    )


def cost_lines(before: Cost, after: Cost) -> list[str]:
    """A line for each figure that is known, before and after."""
    return [f"  {name:<14}{old} -> {new}" for name, old, new in cost_rows(before, after)]


def cost_rows(before: Cost, after: Cost) -> list[tuple[str, str, str]]:
    """Each figure that is known: its name, and what it is before and after."""
    rows: list[tuple[str, float | None, float | None, str]] = [
        ("convs", before.convs, after.convs, "{:.0f}"),
        ("params", before.params / 1e6, after.params / 1e6, "{:.3f} M"),
        ("FLOPs", _billions(before.flops), _billions(after.flops), "{:.3f} G"),
        ("Winograd MULs", _billions(before.winograd_muls), _billions(after.winograd_muls), "{:.3f} G"),
        ("activations", _mebi(before.activation_bytes), _mebi(after.activation_bytes), "{:.2f} MiB"),
    ]
    return [
        (name, shown.format(old), shown.format(new)) for name, old, new, shown in rows if old is not None and new is not None
    ]


def prefixed(report: FuseReport, path: str) -> FuseReport:
    """The report on a part of a model, with the names that its nodes have in the whole."""
    fusions = tuple(
        replace(f, nodes=tuple(f"{path}.{n}" for n in f.nodes), node=f"{path}.{f.node}", source=f"{path}.{f.source}")
        for f in report.fusions
    )
    refusals = tuple(replace(refusal, node=f"{path}.{refusal.node}") for refusal in report.refusals)
    graphs = report.graphs and Graphs(_under(path, report.graphs.before), _under(path, report.graphs.after))
    return replace(report, fusions=fusions, refusals=refusals, graphs=graphs)


def merged(kind: str, reports: Sequence[FuseReport], remarks: Sequence[str]) -> FuseReport:
    """One report of the parts of a model that were read on their own; costs add up."""
    graphs = [report.graphs for report in reports if report.graphs is not None]
    return FuseReport(
        kind,
        tuple(fusion for report in reports for fusion in report.fusions),
        tuple(refusal for report in reports for refusal in report.refusals),
        _sum([report.before for report in reports]),
        _sum([report.after for report in reports]),
        remarks=tuple(remarks),
        graphs=Graphs(_beside(pair.before for pair in graphs), _beside(pair.after for pair in graphs)) if graphs else None,
    )


def _under(path: str, graph: Graph) -> Graph:
    """A graph whose ids stand under a path."""

    def renamed(node: Node) -> Node:
        inputs = tuple(f"{path}.{operand}" if isinstance(operand, str) else operand for operand in node.inputs)
        return replace(node, id=f"{path}.{node.id}", inputs=inputs, replaces=tuple(f"{path}.{n}" for n in node.replaces))

    return Graph.of(map(renamed, graph), (f"{path}.{output}" for output in graph.outputs))


def _beside(graphs: Iterable[Graph]) -> Graph:
    """Graphs that have nothing to do with each other, as one; of two nodes of one id the first."""
    nodes: dict[str, Node] = {}
    outputs: dict[str, None] = {}
    for graph in graphs:
        for node in graph:
            nodes.setdefault(node.id, node)
        outputs.update(dict.fromkeys(graph.outputs))
    return Graph.of(nodes.values(), outputs)


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(c.params for c in costs), sum(c.convs for c in costs), None, None, None)


def _fusion_line(fusion: Fusion) -> str:
    weight, (low, high) = "x".join(map(str, fusion.weight)), fusion.weight_range
    parts = [
        f"weight {weight} in [{low:.3g}, {high:.3g}]",
        fusion.shape or "shape unknown",
        f"{fusion.before.multiply_adds / 1e6:.4g} -> {fusion.after.multiply_adds / 1e6:.4g} M multiply-adds",
        f"{fusion.before.bytes / 1e6:.4g} -> {fusion.after.bytes / 1e6:.4g} MB moved",
    ]
    error = [] if fusion.error is None else [f"error {fusion.error.max_abs:.1e}"]
    return f"  fused    {fusion.node}: {len(fusion.nodes)} nodes -> {fusion.op}; {', '.join([*parts, *error])}"


def _refusal_line(refusal: Refusal) -> str:
    return f"  refused  {refusal.node} ({refusal.op}): {refusal.reason}"


def _convs(before: Cost, after: Cost) -> str:
    return f", {before.convs} -> {after.convs} convs"


def _billions(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def _mebi(value: int | None) -> float | None:
    return None if value is None else value / 2**20
