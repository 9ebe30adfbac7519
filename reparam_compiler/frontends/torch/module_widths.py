"""Modules that state widths: what a cut changes in their attributes, for each row of the vocabulary.

nn.Conv2d(16, 16, 3, groups=16)      becomes      nn.Conv2d(8, 8, 3, groups=8)
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.hooks import written_class
from reparam_compiler.frontends.torch.padded_conv import conv_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.ir.kind import Kind, Place
from reparam_compiler.vocabulary.resolve import ROWS, resolve_module
from reparam_compiler.vocabulary.row import Row

Widths = Mapping[str, object]
"""Attributes and their values."""
ModuleWriter = Callable[[Any, Any, Node], Widths]
"""The widths of a module, from the module, its op and the node, whose tensors are those after the cut."""
Kinds = type[Kind] | tuple[type[Kind], ...]
MODULE_WRITERS: dict[Row, tuple[Kinds, ModuleWriter]] = {}
"""For each row of the vocabulary, as its modules spell it, the op that they are (one of several), and their writer."""


def writes_module(op: Kinds, *names: str) -> Callable[[ModuleWriter], ModuleWriter]:
    """Registers the writer of these rows' modules; raises ValueError for a row that has one, KeyError for no row's name."""

    def register(writer: ModuleWriter) -> ModuleWriter:
        for name in names:
            if ROWS[name] in MODULE_WRITERS:
                raise ValueError(f"the modules of {name} have a writer already")
            MODULE_WRITERS[ROWS[name]] = (op, writer)
        return writer

    return register


def update_module(module: nn.Module, node: Node) -> None:
    """Sets what a module says of its widths to those of its tensors, which are already exchanged.

    Raises:
        RewriteError: the module's class has no writer.
    """
    module, op = conv_of(module), ops.understood(node.op)
    row = resolve_module(type(module)).row
    entry = MODULE_WRITERS.get(row) if row is not None else None
    if entry is None or not isinstance(op, entry[0]):
        raise RewriteError(f"{node.id}: a {type(module).__name__} module cannot be made to do {node.op.name}")
    for name, value in entry[1](module, op, node).items():
        setattr(module, name, value)


def plain_module(module: nn.Module) -> nn.Module:
    """A parametrized module without its parametrizations: their values are its parameters, all else it shares."""
    kind = written_class(module)
    plain: nn.Module = kind.__new__(kind)
    vars(plain).update(vars(module))
    parametrizations: Any = module.parametrizations
    computed: dict[str, nn.Parameter | None] = {}
    for name, parametrization in parametrizations.items():
        trains = any(original.requires_grad for original in parametrization.parameters())
        computed[name] = nn.Parameter(getattr(module, name).detach().clone(), requires_grad=trains)
    plain._parameters = {**computed, **module._parameters}
    plain._modules = {name: part for name, part in module._modules.items() if name != "parametrizations"}
    return plain


def tensor_name(node: Node, index: int) -> str:
    """What a module calls the parameter that is input `index` of its node."""
    name = node.op.signature.name(index)
    return {None: "weight", "mean": "running_mean", "var": "running_var"}.get(name) or str(name)


def _shape(node: Node, operand: Place = "weight") -> tuple[int, ...] | None:
    """The shape of a parameter; None where the module has none."""
    param = node.operand(operand)
    return param.shape if isinstance(param, Param) else None


def _weight(node: Node, operand: Place = "weight") -> tuple[int, ...]:
    """The shape of the weight; raises RewriteError where it is no parameter."""
    shape = _shape(node, operand)
    if shape is None:
        raise RewriteError(f"{node.id}: the weight of {node.op.name} is computed; its module states the widths of a parameter")
    return shape


@writes_module(ops.Conv, "conv1d", "conv2d", "conv3d")
def _conv(module: nn.Module, op: ops.Conv, node: Node) -> Widths:
    out, into, *_ = _weight(node)
    return {"groups": op.groups, "out_channels": out, "in_channels": into * op.groups}


@writes_module(ops.ConvTranspose, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(module: nn.Module, op: ops.ConvTranspose, node: Node) -> Widths:
    into, out, *_ = _weight(node)
    return {"groups": op.groups, "in_channels": into, "out_channels": out * op.groups}


@writes_module(ops.Linear, "linear")
def _linear(module: nn.Module, op: ops.Linear, node: Node) -> Widths:
    out, into = _weight(node)
    return {"out_features": out, "in_features": into}


@writes_module(ops.BatchNorm, "batch_norm")
def _batch_norm(module: nn.Module, op: ops.BatchNorm, node: Node) -> Widths:
    mean = _shape(node, "mean")
    return {"num_features": mean[0]} if mean else {}


@writes_module(ops.LayerNorm, "layer_norm", "rms_norm")
def _layer_norm(module: nn.Module, op: ops.LayerNorm, node: Node) -> Widths:
    return {"normalized_shape": op.shape}


@writes_module(ops.GroupNorm, "group_norm")
def _group_norm(module: nn.GroupNorm, op: ops.GroupNorm, node: Node) -> Widths:
    """Without weights the channels are those of what is read: as many in a group as before, or one."""
    weight = _shape(node)
    channels = weight[0] if weight else node.type.shape[1] if node.type is not None else None
    return {"num_groups": op.groups} | ({"num_channels": channels} if isinstance(channels, int) else {})


@writes_module((ops.GroupNorm, ops.BatchNorm), "functional.instance_norm")
def _instance_norm(module: nn.Module, op: ops.GroupNorm | ops.BatchNorm, node: Node) -> Widths:
    """A batch norm where it has statistics."""
    line = _shape(node) or (_shape(node, "mean") if isinstance(op, ops.BatchNorm) else None)
    return {"num_features": line[0]} if line else {}


@writes_module(ops.Embedding, "functional.embedding")
def _embedding(module: nn.Module, op: ops.Embedding, node: Node) -> Widths:
    return {"embedding_dim": _weight(node)[1]}


@writes_module(ops.PerChannel, "prelu")
def _prelu(module: nn.Module, op: ops.PerChannel, node: Node) -> Widths:
    return {"num_parameters": math.prod(_weight(node, 1))}


@writes_module(ops.Reshape, "unflatten")
def _unflatten(module: Any, op: ops.Reshape, node: Node) -> Widths:
    count = len(module.unflattened_size)
    axis = module.dim if module.dim >= 0 else module.dim + len(op.shape) - count + 1
    return {"unflattened_size": op.shape[axis : axis + count]}
