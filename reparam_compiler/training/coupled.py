"""Where the channel groups of a graph stand in the module that it was read from.

A parameter of the graph is the module's tensor of its native name (`Param.origin`). Along an axis of a tensor, what belongs to
a group of a family is

    a filter      an output slice of a conv or linear          what the group computes
    made          filters, biases, scales and shifts           all that makes a channel what it is
    statistics    running means and variances of norms         what follows the data, and no gradient
    read          an input slice of a conv or linear           what the group does to those who read it
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.passes.pruning.coupling.groups import ChannelGroups, Family
from reparam_compiler.passes.pruning.criteria.base import places_of, stands

STATISTICS = ("mean", "var")
"""The roles of tensors that follow the data, and no gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The slices of a tensor of the module, along an axis, that belong to the groups of a family.

    name: of the tensor in the module. places: for each group, in the family's order, which positions.
    """

    name: str
    tensor: Tensor
    axis: int
    places: Int64[np.ndarray, "F P"]

    def rows(self, tensor: Tensor | None = None) -> Tensor:
        """`F D`: what belongs to a group is a row; of the tensor itself, or of one of its shape."""
        whole = self.tensor if tensor is None else tensor
        return whole.movedim(self.axis, 0)[torch.from_numpy(self.places)].reshape(len(self.places), -1)

    def put(self, rows: Tensor, into: Tensor) -> None:
        """Writes rows back."""
        view = into.movedim(self.axis, 0)
        places = torch.from_numpy(self.places)
        view[places] = rows.reshape(*places.shape, *view.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class CoupledFamily:
    """A family that can be cut, and where it stands in a module.

    filters: the weights of the convs and linears that its channels run through, along their outputs.
    made: all parameters that make a channel what it is: the filters, biases, scales and shifts of norms.
    statistics: running means and variances.
    read: the weights that read the channels.
    obstacle: why two equal channels cannot be replaced by one; empty where they can.
    """

    family: Family
    filters: tuple[Part, ...]
    made: tuple[Part, ...]
    statistics: tuple[Part, ...]
    read: tuple[Part, ...]
    obstacle: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Coupled:
    """A module and the families of its graph that can be cut."""

    module: nn.Module
    graph: Graph
    groups: ChannelGroups
    families: tuple[CoupledFamily, ...]

    @staticmethod
    def of(module: nn.Module, graph: Graph, groups: ChannelGroups) -> "Coupled":
        """Finds the tensors of the groups.

        Args:
            module: the model to train.
            graph: as a frontend read it from the module, or from what the module was traced to.
            groups: the coupling of the graph.

        Raises:
            UnsupportedModelError: a parameter of a family is not the module's own, of that name and shape: it is computed (a
                parametrization), or the module is another one.
        """
        tensors = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        parts: dict[str, dict[str, list[Part]]] = {}
        seen: set[tuple[Param, int, str]] = set()
        for node, index, operand, axes in groups.params(graph):
            for axis, labels in axes.items():
                kind = "statistics" if operand.role in STATISTICS else stands(node, index, axis, axes)
                if (operand, axis, kind) in seen:
                    continue
                seen.add((operand, axis, kind))
                numbers = groups.number[labels]
                for family in groups.free:
                    if np.isin(family.groups, numbers).any():
                        tensor = _tensor(tensors, operand, node)
                        part = Part(str(operand.origin), tensor, axis, places_of(family, numbers))
                        parts.setdefault(family.name, {}).setdefault(kind, []).append(part)
        return Coupled(module, graph, groups, tuple(_coupled(f, parts.get(f.name, {}), graph, groups) for f in groups.free))


def _tensor(tensors: Mapping[str, Tensor], param: Param, node: Node) -> Tensor:
    tensor = tensors.get(param.origin or "")
    if tensor is None or tuple(tensor.shape) != param.shape:
        expected = (
            f"{param.origin} of shape {param.shape}" if param.origin else f"its {param.role} under a name; it is computed"
        )
        found = "" if tensor is None else f", found it of shape {tuple(tensor.shape)}"
        raise UnsupportedModelError(
            f"{node.id} ({node.op.name}): expected the module to have {expected}{found}. "
            "Give the module that the graph was read from, or pin this layer"
        )
    return tensor


def _coupled(family: Family, parts: Mapping[str, list[Part]], graph: Graph, groups: ChannelGroups) -> CoupledFamily:
    filters, read, statistics = (tuple(parts.get(kind, ())) for kind in ("filters", "read", "statistics"))
    made = (*filters, *parts.get("made", ()))
    reason = next((f"{family.name}: {part.name} is not trained" for part in made if not part.tensor.requires_grad), "")
    tied = {(part.name, part.axis) for part in made} & {(part.name, part.axis) for part in read}
    reason = reason or next((f"{family.name}: {name} both makes and reads its channels" for name, _ in sorted(tied)), "")
    return CoupledFamily(family, filters, made, statistics, read, reason or _obstacle(family, graph, groups))


def _obstacle(family: Family, graph: Graph, groups: ChannelGroups) -> str:
    """The first node that reads the channels and for which two equal ones are not as good as one with twice the weight."""
    for node in graph:
        for source in node.sources:
            value = groups.value(source)
            if value.axis is None or not np.isin(groups.number[value.labels], family.groups).any():
                continue
            runs_over = isinstance(node.op, ops.Reduce) and value.axis in node.op.axes
            if runs_over or not (node.op.moves_data or node.op.keeps_equals_equal):
                return f"{family.name}: {node.id} ({node.op.name}) counts every channel"
    return ""
