"""The `torch.nn` modules that a tracer leaves as leaves, each as the call that it makes.

A module is read only where its class is exactly that of a row (or a parametrized one of it) and no hook changes what it does: a
subclass with another `forward` is another op.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from reparam_compiler.frontends.torch.hooks import does_more_than_forward, written_class
from reparam_compiler.frontends.torch.padded_conv import PaddedConv
from reparam_compiler.vocabulary.resolve import ROWS, Resolved, by_row_name, resolve_module, unread_module
from reparam_compiler.vocabulary.row import Row


@dataclass(frozen=True, slots=True)
class ModuleTensor:
    """The tensor `attribute` of the module at the path `module`."""

    module: str
    attribute: str

    @property
    def origin(self) -> str:
        """Its name in the state dict."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


def _tensors(path: str, *names: str) -> tuple[ModuleTensor, ...]:
    return tuple(ModuleTensor(path, name) for name in names)


def _conv(m: Any, path: str) -> tuple[Any, ...]:
    return (*_tensors(path, "weight", "bias"), m.stride, m.padding, m.dilation, m.groups)


def _padded_conv(m: Any, path: str) -> tuple[Any, ...]:
    """The padding of the first part, as (low, high) for each axis, and the rest of the second."""
    pad, conv = m
    return (*_tensors(f"{path}.1", "weight", "bias"), conv.stride, pad.padding, conv.dilation, conv.groups)


def _conv_transpose(m: Any, path: str) -> tuple[Any, ...]:
    return (*_tensors(path, "weight", "bias"), m.stride, m.padding, m.output_padding, m.groups, m.dilation)


def _batch_norm(m: Any, path: str) -> tuple[Any, ...]:
    training = m.training or m.running_mean is None
    return (*_tensors(path, "weight", "bias", "running_mean", "running_var"), training, 0.0, m.eps)


def _pad(m: Any, path: str) -> tuple[Any, ...]:
    match m:
        case nn.ReflectionPad1d() | nn.ReflectionPad2d() | nn.ReflectionPad3d():
            return (m.padding, "reflect")
        case nn.ReplicationPad1d() | nn.ReplicationPad2d() | nn.ReplicationPad3d():
            return (m.padding, "replicate")
        case nn.CircularPad1d() | nn.CircularPad2d() | nn.CircularPad3d():
            return (m.padding, "circular")
        case _:
            return (m.padding, "constant", getattr(m, "value", 0.0))


def _layer_norm(m: Any, path: str) -> tuple[Any, ...]:
    return (m.normalized_shape, *_tensors(path, "weight", "bias"), m.eps)


def _rms_norm(m: Any, path: str) -> tuple[Any, ...]:
    return (m.normalized_shape, *_tensors(path, "weight"), m.eps)


def _group_norm(m: Any, path: str) -> tuple[Any, ...]:
    return (m.num_groups, *_tensors(path, "weight", "bias"), m.eps)


def _instance_norm(m: Any, path: str) -> tuple[Any, ...]:
    """At last the rank at which the module takes x for one without batch, which `F.instance_norm` never does."""
    statistics = _tensors(path, "running_mean", "running_var")
    over_input = m.training or m.running_mean is None
    return (*statistics, *_tensors(path, "weight", "bias"), over_input, 0.0, m.eps, m._get_no_batch_dim())


def _softmax(m: Any, path: str) -> tuple[Any, ...]:
    return (-3,) if isinstance(m, nn.Softmax2d) else (m.dim,)


def _embedding(m: Any, path: str) -> tuple[Any, ...]:
    return (*_tensors(path, "weight"), m.padding_idx, m.max_norm)


def _weight(m: Any, path: str) -> tuple[Any, ...]:
    return _tensors(path, "weight")


def _weight_and_bias(m: Any, path: str) -> tuple[Any, ...]:
    return _tensors(path, "weight", "bias")


_ARGUMENTS: dict[Row, Callable[[Any, str], tuple[Any, ...]]] = by_row_name(
    {
        **{f"conv{n}d": _conv for n in (1, 2, 3)},
        **{f"conv_transpose{n}d": _conv_transpose for n in (1, 2, 3)},
        "padded_conv": _padded_conv,
        "linear": _weight_and_bias,
        "batch_norm": _batch_norm,
        "pad": _pad,
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "group_norm": _group_norm,
        "functional.instance_norm": _instance_norm,
        "functional.embedding": _embedding,
        "prelu": _weight,
        "softmax": _softmax,
        "log_softmax": _softmax,
    }
)
"""What follows the first argument of the function, for modules with tensors, or of which several are one function."""


def called_module(module: nn.Module) -> Resolved:
    """What a leaf module calls: no row where it does more than its class says."""
    kind = written_class(module)
    if does_more_than_forward(module):
        return unread_module(kind)
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) and module.return_indices:
        return unread_module(kind)
    return Resolved("padded_conv", ROWS["padded_conv"]) if kind is PaddedConv else resolve_module(kind)


def module_arguments(row: Row, module: nn.Module, path: str) -> tuple[Any, ...]:
    """What follows the first argument, in the call that a module of this row makes."""
    own = _ARGUMENTS.get(row)
    return own(module, path) if own else tuple(getattr(module, name) for name in row.of_module)
