"""A manifest applied: other weights of the architecture that it was made of, cut as those were."""

from collections.abc import Mapping
from copy import copy
from typing import TypeVar, overload

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from reparam_compiler.core.slicing import take
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.ir.graph import Graph, Node, NodeId, Param
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Keep, channel_groups
from reparam_compiler.passes.pruning.coupling.labels import Labels
from reparam_compiler.passes.pruning.manifest import (
    KeptParam,
    Manifest,
    Shape,
    is_architecture,
    mask_of,
    names_of,
    without_bias,
)
from reparam_compiler.passes.pruning.slice_channels import masked, sliced, verify_pruned

Weight = TypeVar("Weight", Tensor, np.ndarray)


@overload
def apply_manifest(model: Graph, manifest: Manifest) -> Graph: ...
@overload
def apply_manifest(model: Mapping[str, Weight], manifest: Manifest) -> dict[str, Weight]: ...
def apply_manifest(model: Graph | Mapping[str, Weight], manifest: Manifest) -> Graph | dict[str, Weight]:
    """Other weights of the architecture that a manifest was made of, cut as those were. What is given is not changed.

    Args:
        model: a graph, or a `state_dict` (name -> tensor) of the unpruned torch model. Entries that the graph did not read
            (counters of batch norms, layers for training) are passed on, and so is, as the same tensor, what was not cut.
        manifest: which indices stay.

    Returns:
        The cut graph, proven against its masked reference in float64; or the cut `state_dict`.

    Raises:
        InfeasiblePruneError: the architecture is another one; the message names the first parameter that differs.
        VerificationError: the cut graph does not compute what the masked one does.
    """
    return _cut_graph(model, manifest) if isinstance(model, Graph) else _cut_state(model, manifest)


def _cut_state(state: Mapping[str, Weight], manifest: Manifest) -> dict[str, Weight]:
    pruned = copy(state) if isinstance(state, dict) else dict(state)  # a copy keeps torch's versions of the modules
    cut: dict[tuple[object, ...], Weight] = {}
    for name, param in manifest.params.items():
        if name not in state:
            raise InfeasiblePruneError(
                f"{name}: not in the state_dict; expected a tensor of shape {param.before}. Give that of the unpruned model, "
                "under its own names (fused where the pruned one was); what has no name there is cut through the graph alone"
            )
        weight = state[name]
        _check_shape(name, tuple(weight.shape), param)
        if param.kept:
            pruned[name] = _taken(weight, param)
            cut[_storage(weight)] = pruned[name]
        if name in manifest.added:
            bias = name.rpartition(".")[0] + ".bias"
            pruned.setdefault(bias, _zeros(weight, manifest.added[name]))
    for name, weight in state.items():  # a tied weight stands there under all of its names
        if name not in manifest.params and _storage(weight) in cut:
            pruned[name] = cut[_storage(weight)]
    return pruned


def _zeros(like: Weight, size: int) -> Weight:
    """A bias of zeros."""
    return like.new_zeros(size) if isinstance(like, Tensor) else np.zeros(size, like.dtype)


def _storage(weight: Weight) -> tuple[object, ...]:
    """The same for two names of one tensor."""
    if isinstance(weight, Tensor):
        return weight.data_ptr(), tuple(weight.shape), weight.stride()
    return weight.__array_interface__["data"], weight.shape, weight.strides


def _taken(weight: Weight, param: KeptParam) -> Weight:
    if isinstance(weight, Tensor):
        cut = weight.detach()
        for axis, indices in param.kept.items():
            cut = cut.index_select(axis, torch.tensor(indices, device=cut.device))
        return cut
    return take(weight, {axis: mask_of(indices, param.before[axis]) for axis, indices in param.kept.items()})


def _cut_graph(graph: Graph, manifest: Manifest) -> Graph:
    names = names_of(graph)
    for name, param in manifest.params.items():
        if name not in names:
            raise InfeasiblePruneError(
                f"{name}: the model has no such parameter; the manifest expects one of shape {param.before}. Give a model of "
                "the architecture that was pruned, before pruning (and fused, where that one was)"
            )
        _check_shape(name, names[name].shape, param)
    for name, given in names.items():
        if name not in manifest.params and is_architecture(given):
            raise InfeasiblePruneError(
                f"{name}: found a parameter of shape {given.shape} that the manifest does not know; give a model of the "
                "architecture that was pruned"
            )
    groups = channel_groups(graph)
    keep = _keep(graph, groups, manifest, names)
    pruned = sliced(graph, groups, keep)
    verify_pruned(masked(graph, groups, keep), pruned)
    return _with_biases(graph, pruned, manifest)


def _with_biases(graph: Graph, pruned: Graph, manifest: Manifest) -> Graph:
    """The cut graph with a bias of zeros where repair added one."""
    added: dict[NodeId, Node] = {}
    for name, node_id in without_bias(graph).items():
        if name in manifest.added:
            dtype = pruned[node_id].params[0].dtype
            bias = Param.of(np.zeros(manifest.added[name]), role="bias", dtype=dtype)
            added[node_id] = pruned[node_id].with_operands({"bias": bias})
    return pruned.rewrite(added)


def _keep(graph: Graph, groups: ChannelGroups, manifest: Manifest, names: Mapping[str, Param]) -> Keep:
    """The mask that makes exactly the manifest's cuts."""
    name_of = {param: name for name, param in names.items()}
    keep = np.ones(groups.count, np.bool_)
    wanted: list[tuple[str, int, Labels, Bool[np.ndarray, "C"]]] = []
    seen: dict[str, set[int]] = {}
    for _, _, param, axes in groups.params(graph):
        name = name_of[param]
        kept = manifest.params[name].kept if name in manifest.params else {}
        seen.setdefault(name, set()).update(axes)
        for axis, labels in axes.items():
            stays = mask_of(kept[axis], len(labels)) if axis in kept else np.ones(len(labels), np.bool_)
            keep[groups.number[labels[~stays]]] = False
            wanted.append((name, axis, labels, stays))
    for name, axis, labels, stays in wanted:
        if not np.array_equal(groups.kept(keep, labels), stays):
            place = int(np.flatnonzero(groups.kept(keep, labels) != stays)[0])
            raise InfeasiblePruneError(
                f"{name}: the manifest keeps index {place} of axis {axis}, but another parameter loses the channel that it "
                "goes with; this model couples its channels in another way than the one that was pruned"
            )
    for name, entry in manifest.params.items():
        if missing := entry.kept.keys() - seen.get(name, set()):
            raise InfeasiblePruneError(
                f"{name}: the manifest cuts axis {min(missing)}, which no channel of this model goes with; "
                "give a model of the architecture that was pruned"
            )
    return keep


def _check_shape(name: str, found: Shape, param: KeptParam) -> None:
    if found != param.before:
        pruned = "; it is pruned already" if found == param.after else ""
        raise InfeasiblePruneError(
            f"{name}: found the shape {found}; the manifest expects {param.before}, before pruning{pruned}. "
            "Give weights of the architecture that was pruned"
        )
