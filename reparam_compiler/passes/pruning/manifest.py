"""What a pruning kept, as a file: it is shown to people, and applied to other weights of the same architecture.

For each parameter w that was cut, the manifest holds along each cut axis a the sorted indices K_a that stayed, so that

    pruned(w)[i_0, i_1, …] = w[K_0[i_0], K_1[i_1], …]        with K_a = (0, 1, …) where axis a was not cut

Weights that were trained on, or averaged, in the unpruned model follow in this way. What a repair made of the weights is not
part of it: the given ones are cut and nothing else. Where it gave a layer a bias that had none, the manifest says so, and what
is cut by it has a bias of zeros there: the `state_dict` of the pruned and repaired model can be loaded into it.

Parameters go by their native names, `layer1.0.conv.weight`. One that the model has no name for (a product of others, a scalar)
goes by the node that reads it and the place it is read at, `node[1]`, and only where it was cut. Shapes are those of the graph:
a linear's weight is `O I` however it is stored.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from reparam_compiler.core.files import written_whole
from reparam_compiler.core.packages import installed_version
from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Family, Keep, native_name
from reparam_compiler.passes.pruning.coupling.labels import Labels, coupling_model
from reparam_compiler.passes.pruning.pipeline import PruneResult

FORMAT = "reparam_compiler pruning manifest"
VERSION = 1
Shape = tuple[int, ...]
Indices = tuple[int, ...]
_SHOWN = 40
"""Characters of a row of `to_text` that indices may take."""


@dataclass(frozen=True, slots=True)
class KeptParam:
    """A parameter: its shape before, and for each axis that was cut the indices that stay."""

    before: Shape
    kept: Mapping[int, Indices]

    @property
    def after(self) -> Shape:
        """The shape after."""
        return tuple(len(self.kept[axis]) if axis in self.kept else size for axis, size in enumerate(self.before))


@dataclass(frozen=True, slots=True)
class KeptFamily:
    """A family of channels: its width before and after, and for each layer that makes them which of its outputs stay."""

    before: int
    after: int
    layers: Mapping[str, Indices]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a pruning kept.

    params: by name, all that make up the architecture, also those that were not cut.
    families: by name, those that could be cut.
    tool: the version of this package that wrote it.
    added: by the names of weights, of how many numbers the bias is that repair added to their layers.

    >>> weight = KeptParam(before=(4, 3, 1, 1), kept={0: (0, 2)})
    >>> cut = Manifest({"stem.weight": weight}, {"stem": KeptFamily(4, 2, {"stem": (0, 2)})}, "0.1.0")
    >>> cut.params["stem.weight"].after, cut.families["stem"].layers
    ((2, 3, 1, 1), {'stem': (0, 2)})
    """

    params: Mapping[str, KeptParam]
    families: Mapping[str, KeptFamily]
    tool: str
    added: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph, result: PruneResult) -> "Manifest":
        """The manifest of a pruning.

        Args:
            graph: the one that was pruned.
            result: what `pipeline.prune` made of it.
        """
        cuts = _cuts(graph, result.groups, result.keep)
        params = {
            name: KeptParam(param.shape, cuts.get(param, {}))
            for name, param in names_of(graph).items()
            if param in cuts or is_architecture(param)
        }
        families = {family.name: _kept_family(family, graph, result) for family in result.groups.free}
        return Manifest(params, families, installed_version("reparam_compiler") or "unknown", _added(graph, result.graph))

    @property
    def fingerprint(self) -> str:
        """A hash (SHA-256) of the names and shapes before pruning: the same for all checkpoints of an architecture."""
        lines = (f"{name} {'x'.join(map(str, param.before))}\n" for name, param in sorted(self.params.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as a JSON object, a line for each parameter and family."""
        params = {
            name: {"before": p.before, "after": p.after, "kept": {str(axis): indices for axis, indices in p.kept.items()}}
            for name, p in self.params.items()
        }
        families = {n: {"before": f.before, "after": f.after, "layers": dict(f.layers)} for n, f in self.families.items()}
        head = {"format": FORMAT, "version": VERSION, "tool": self.tool, "shapes_sha256": self.fingerprint}
        rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        tables: dict[str, Mapping[str, object]] = {"params": params, "families": families}
        if self.added:
            tables["added"] = self.added
        rows += [f"{json.dumps(key)}: {_lines(table)}" for key, table in tables.items()]
        return "{\n" + ",\n".join(rows) + "\n}\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON, whole or not at all; an older file is replaced in one step."""
        with written_whole(path) as part:
            part.write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Manifest":
        """Reads what `save` wrote.

        Raises:
            UnsupportedModelError: the file is no manifest, not all of one, or a newer one.
            InfeasiblePruneError: what it says contradicts itself.
            OSError: it cannot be opened.
        """
        text = Path(path).read_bytes()
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnsupportedModelError(
                f"{path}: found no JSON ({error}); expected a {FORMAT}; write it again, it may have been cut off"
            ) from error
        return _Parser(os.fspath(path)).manifest(found)

    def to_text(self) -> str:
        """A table: each layer whose outputs could be cut, its width before and after, and which outputs stay."""
        rows = [("layer", "before", "after", "kept")]
        for name, family in self.families.items():
            for layer, indices in (family.layers or {name: ()}).items():
                shown = "all" if family.before == family.after else _abbreviated(indices)
                rows.append((layer, str(family.before), str(family.after), shown))
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{layer:<{wide[0]}}  {before:>{wide[1]}}  {after:>{wide[2]}}  {kept}".rstrip()
            for layer, before, after, kept in rows
        )


def names_of(graph: Graph) -> dict[str, Param]:
    """Every parameter by its native name, or by its first reader where it has none of its own."""
    named: dict[str, Param] = {}
    for param, ((node_id, index), *_) in graph.param_users.items():
        own = param.origin is not None and param.origin not in named
        named[str(param.origin) if own else f"{node_id}[{index}]"] = param
    return named


def without_bias(graph: Graph) -> dict[str, NodeId]:
    """The convs and linears that have none, by the names of their weights."""
    name_of = {param: name for name, param in names_of(graph).items()}
    nodes = (node for node in graph if isinstance(node.op, ops.Weighted) and node.operand("bias") is None)
    return {name_of[weight]: node.id for node in nodes if isinstance(weight := node.operand("weight"), Param)}


def _added(before: Graph, after: Graph) -> dict[str, int]:
    """The sizes of the biases that `after` has and `before` has not, by the names of the weights beside them."""
    nodes = {name: after.nodes.get(node_id) for name, node_id in without_bias(before).items()}
    biases = {name: node.param("bias") for name, node in nodes.items() if node is not None}
    return {name: bias.shape[0] for name, bias in biases.items() if bias is not None}


def is_architecture(param: Param) -> bool:
    """False for constants: exporters name and fold them as they like."""
    return param.origin is not None and param.role != "const"


def _cuts(graph: Graph, groups: ChannelGroups, keep: Keep) -> dict[Param, dict[int, Indices]]:
    cuts: dict[Param, dict[int, Indices]] = {}
    for _, _, param, axes in groups.params(graph):
        for axis, labels in axes.items():
            stays = groups.kept(keep, labels)
            if not stays.all():
                cuts.setdefault(param, {})[axis] = tuple(np.flatnonzero(stays).tolist())
    return cuts


def _labels_made(node: Node, groups: ChannelGroups) -> Labels | None:
    """The labels of the outputs of a layer, along the axis of its weight, or of its first parameter, that stands for them."""
    op, seen = coupling_model(node)
    axis = op.output_axis if isinstance(op, ops.Weighted | ops.Embedding) else 0
    return groups.along(seen, 1).get(axis)


def _kept_family(family: Family, graph: Graph, result: PruneResult) -> KeptFamily:
    layers: dict[str, Indices] = {}
    for node_id in family.producers:
        labels = _labels_made(graph[node_id], result.groups)
        if labels is not None:
            own = np.isin(result.groups.number[labels], family.groups) & result.groups.kept(result.keep, labels)
            name = native_name(graph[node_id])
            layers[name if name not in layers else node_id] = tuple(np.flatnonzero(own).tolist())
    after = family.positions * int(result.keep[family.groups].sum())
    return KeptFamily(family.width, after, layers)


def mask_of(indices: Indices, size: int) -> Bool[np.ndarray, "C"]:
    mask = np.zeros(size, np.bool_)
    mask[list(indices)] = True
    return mask


def _lines(table: Mapping[str, object]) -> str:
    """A JSON object with a line for each of its entries."""
    if not table:
        return "{}"
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items()) + "\n}"


def _abbreviated(indices: Sequence[int]) -> str:
    """`0-3, 7, 9-12`, cut off where it gets long."""
    edges = [-1, *(place for place, (a, b) in enumerate(pairwise(indices)) if b != a + 1), len(indices) - 1]
    runs = [(indices[low + 1], indices[high]) for low, high in pairwise(edges)] if indices else []
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    while len(", ".join(shown)) > _SHOWN:
        shown = [*shown[:-2], "…"] if shown[-1] == "…" else [*shown[:-1], "…"]
    return ", ".join(shown)


@dataclass(frozen=True, slots=True)
class _Parser:
    """Reads a manifest from JSON values that may be anything; `path` is for its errors."""

    path: str

    def manifest(self, found: object) -> Manifest:
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UnsupportedModelError(
                f"{self.path}: found JSON whose format is not {FORMAT!r}: expected what Manifest.save wrote"
            )
        version, tool = found.get("version"), found.get("tool")
        if not isinstance(version, int) or version < 1 or not isinstance(tool, str):
            raise self._foreign("version and tool", "a number from 1 and a text", (version, tool))
        if version > VERSION:
            raise UnsupportedModelError(
                f"{self.path}: found version {version}, by reparam_compiler {tool}; this one reads up to {VERSION}: update it"
            )
        params = {name: self._param(name, entry) for name, entry in self._object("params", found.get("params")).items()}
        families = {name: self._family(name, e) for name, e in self._object("families", found.get("families")).items()}
        added = {name: self._numbers(name, [size])[0] for name, size in self._object("added", found.get("added", {})).items()}
        manifest = Manifest(params, families, tool, added)
        if found.get("shapes_sha256") != manifest.fingerprint:
            raise InfeasiblePruneError(
                f"{self.path}: found shapes_sha256 {found.get('shapes_sha256')}, but its names and shapes give "
                f"{manifest.fingerprint}; it was edited or is not whole: write the manifest again"
            )
        return manifest

    def _param(self, name: str, entry: object) -> KeptParam:
        fields = self._object(name, entry)
        before, after = self._numbers(name, fields.get("before")), self._numbers(name, fields.get("after"))
        kept: dict[int, Indices] = {}
        for axis, indices in self._object(name, fields.get("kept")).items():
            if not axis.isdecimal() or int(axis) >= len(before):
                raise self._contradiction(name, f"axis {axis!r} of {len(before)} axes")
            kept[int(axis)] = self._sorted(name, indices, before[int(axis)])
        param = KeptParam(before, kept)
        if param.after != after:
            raise self._contradiction(name, f"the shape {after} after, while its indices leave {param.after}")
        return param

    def _family(self, name: str, entry: object) -> KeptFamily:
        fields = self._object(name, entry)
        before, after = self._numbers(name, [fields.get("before"), fields.get("after")])
        layers = {
            layer: self._sorted(name, indices, None) for layer, indices in self._object(name, fields.get("layers")).items()
        }
        if not 0 < after <= before:
            raise self._contradiction(name, f"{after} of {before} channels")
        return KeptFamily(before, after, layers)

    def _sorted(self, name: str, value: object, size: int | None) -> Indices:
        indices = self._numbers(name, value)
        if not indices or any(b <= a for a, b in pairwise(indices)) or (size is not None and indices[-1] >= size):
            within = "" if size is None else f" below {size}"
            raise self._contradiction(name, f"the indices {_abbreviated(indices)}, which are not one or more in order{within}")
        return indices

    def _numbers(self, name: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, list) or not all(type(number) is int and number >= 0 for number in value):
            raise self._foreign(name, "a list of numbers that are not negative", value)
        return tuple(value)

    def _object(self, name: str, value: object) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self._foreign(name, "an object", value)
        return value

    def _foreign(self, name: str, expected: str, found: object) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.path}: {name}: found {found!r:.80}; expected {expected}: write the manifest again")

    def _contradiction(self, name: str, found: str) -> InfeasiblePruneError:
        return InfeasiblePruneError(f"{self.path}: {name}: found {found}; it contradicts itself: write the manifest again")
