"""What a report says, as plain data: numbers, words and ids, no arrays and no graphs. It is all that a renderer reads.

Ids of nodes are those of the model before and after; a region's `node` is an id of the graph after, which that of its last
node is before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION = 1
"""Of the format; another one where a field is renamed or goes."""
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a report: the command, the versions of packages, and the SHA-256 of each file, or of a model's weights."""

    command: str
    versions: Mapping[str, str]
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of the whole model, before and after; None where a model is shown as it is."""

    name: str
    unit: str
    before: float
    after: float | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A constant that a node reads: its role, its shape and dtype, its name in the model ("" for a new one)."""

    role: str
    shape: tuple[int, ...]
    dtype: str
    origin: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node of a graph.

    op: its kind. text: with its attributes, as the printer has it. type: dtype and sizes of its value, "" where not known.
    path: the module that it is of, names with dots between, "" where that is not known.
    sources: the ids that it reads. alive: bytes of the values that exist while it runs, by the plan; None where sizes are not
        known. measured: the same as torch holds them, op by op; None where it was not run.
    """

    id: str
    op: str
    text: str
    type: str
    path: str
    sources: tuple[str, ...]
    params: tuple[Parameter, ...]
    alive: int | None
    measured: int | None = None


@dataclass(frozen=True, slots=True)
class GraphView:
    """A graph: its nodes in topological order, and the ids that it returns."""

    nodes: tuple[NodeView, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the algebra that a region was fused by, and its equation."""

    name: str
    equation: str


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes that became one op.

    nodes: before. node, op: after. error: the relative difference of both forms in float64; None where it was not proven.
    multiply_adds, bytes: in one run, before and after.
    """

    nodes: tuple[str, ...]
    node: str
    source: str
    op: str
    type: str
    weight: tuple[int, ...]
    weight_range: Range
    rules: tuple[Rule, ...]
    error: float | None
    multiply_adds: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RefusalView:
    """A node that stayed, and the first thing that stands in the way."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class OpCount:
    """How many nodes of a kind there are, before and after."""

    op: str
    before: int
    after: int | None


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that computes, of the model as it is in the end. weight_range: of its weight; None where it has none."""

    node: str
    op: str
    weight: tuple[int, ...]
    type: str
    multiply_adds: int
    bytes: int
    weight_range: Range | None


@dataclass(frozen=True, slots=True)
class FamilyView:
    """Channels that were cut together. pinned: why they were not; "" where they could be."""

    name: str
    before: int
    after: int
    members: tuple[str, ...]
    pinned: str


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A call of a compiled kernel in one run. flops: of the direct form, a multiply-add being two; 0 where none are counted.

    bytes: what it reads and writes; 0 where that is not known. share: of the time of all calls.
    """

    kernel: str
    algorithm: str
    shape: tuple[int, ...]
    seconds: float
    share: float
    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class KernelTable:
    """The calls of one run in order; peak_flops and bandwidth are the machine's, None where they are not measured."""

    calls: tuple[KernelCall, ...]
    run_seconds: float
    threads: int
    peak_flops: float | None
    bandwidth: float | None


@dataclass(frozen=True, slots=True)
class RepairedLayer:
    """A layer that was refitted. removed: channels that it reads no more. unexplained: the share of what it lost that the rest
    cannot predict; None where only moments were matched.
    """

    node: str
    removed: int
    unexplained: float | None


@dataclass(frozen=True, slots=True)
class RepairView:
    """The errors of the outputs of a pruned model, relative, on held-out samples, before repair and after it.

    kept: whether repair stayed; it is left out where it makes the outputs worse.
    """

    samples: int
    before: float
    after: float
    kept: bool
    layers: tuple[RepairedLayer, ...]


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A model of a sweep.

    ratio: the share of the channels that was to be removed: 0 of the model that was pruned, None of the model as it came.
    multiply_adds, bytes: of one run; bytes are read and written, weights too. milliseconds: the least of a run, by turns.
    score: what the caller's measure gives. error: of the outputs on held-out samples, relative, and what it was before repair.
    refused: why there is no such model, and no number; else "".
    """

    ratio: float | None
    parameters: int | None = None
    multiply_adds: int | None = None
    bytes: int | None = None
    milliseconds: float | None = None
    score: float | None = None
    error: float | None = None
    unrepaired_error: float | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A model pruned by several ratios.

    scored_by: what the scores are of; "" where there are none. samples: that errors are measured on; 0 where none are.
    untimed: why there are no times; else "".
    """

    points: tuple[SweepPoint, ...]
    scored_by: str
    samples: int
    untimed: str


@dataclass(frozen=True, slots=True)
class TunedLayer:
    """A kernel that was searched for, of `count` calls in a run.

    trials: its points on record. rule_seconds, best_seconds: a call by rule, and at its best, measured alone; None where it was
        not measured. taken: the algorithm that `compile` takes by the records; decided: what decided that.
    """

    name: str
    count: int
    trials: int
    rule_seconds: float | None
    best_seconds: float | None
    taken: str
    decided: str


@dataclass(frozen=True, slots=True)
class SearchStep:
    """After `trial` measurements, `seconds` after the search began: all convs of a run, each at its best so far, alone."""

    trial: int
    seconds: float
    best_seconds: float


@dataclass(frozen=True, slots=True)
class Search:
    """What a search of kernels did.

    measured: new measurements, of which `failed` gave no time; total: with those of the folder.
    rule_seconds, net_seconds: of a run by rule, and with what was found, by turns; None where that was not asked.
    """

    layers: tuple[TunedLayer, ...]
    curve: tuple[SearchStep, ...]
    measured: int
    total: int
    failed: int
    rule_seconds: float | None
    net_seconds: float | None


@dataclass(frozen=True, slots=True)
class Page:
    """A report on a model.

    kind: what reads the model. after: None where a model is shown as it is. accuracy: sentences on how exact the result is.
    families, repair: where the model was pruned. kernels: where it was compiled and profiled. sweep: where it was pruned by
        several ratios. search: where kernels were searched for it.
    """

    title: str
    kind: str
    made: Provenance
    figures: tuple[Figure, ...]
    before: GraphView
    after: GraphView | None
    regions: tuple[Region, ...]
    refusals: tuple[RefusalView, ...]
    ops: tuple[OpCount, ...]
    layers: tuple[Layer, ...]
    accuracy: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    families: tuple[FamilyView, ...] = ()
    repair: RepairView | None = None
    kernels: KernelTable | None = None
    sweep: Sweep | None = None
    search: Search | None = None
    version: int = field(default=VERSION)
