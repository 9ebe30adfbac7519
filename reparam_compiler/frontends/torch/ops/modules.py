"""The `torch.nn` modules that a tracer leaves as leaves, each as the function that it calls.

A module is read only where its class is exactly one of these (or a parametrized one of these) and no hook changes what it
does: a subclass with another `forward` is another op.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from reparam_compiler.frontends.torch.padded_conv import PaddedConv


@dataclass(frozen=True, slots=True)
class ModuleTensor:
    """The tensor `attribute` of the module at the path `module`."""

    module: str
    attribute: str

    @property
    def origin(self) -> str:
        """Its name in the state dict."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """`function` is a key of `READERS`; `arguments` gives what follows its first argument."""

    function: str
    arguments: Callable[[Any, str], tuple[Any, ...]]


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


def _attributes(*names: str) -> Callable[[Any, str], tuple[Any, ...]]:
    return lambda m, path: tuple(getattr(m, name) for name in names)


MODULES: dict[type, ModuleCall] = {
    nn.Conv1d: ModuleCall("conv1d", _conv),
    nn.Conv2d: ModuleCall("conv2d", _conv),
    nn.Conv3d: ModuleCall("conv3d", _conv),
    nn.ConvTranspose1d: ModuleCall("conv_transpose1d", _conv_transpose),
    nn.ConvTranspose2d: ModuleCall("conv_transpose2d", _conv_transpose),
    nn.ConvTranspose3d: ModuleCall("conv_transpose3d", _conv_transpose),
    PaddedConv: ModuleCall("padded_conv", _padded_conv),
    nn.Linear: ModuleCall("linear", lambda m, path: _tensors(path, "weight", "bias")),
    nn.BatchNorm1d: ModuleCall("batch_norm", _batch_norm),
    nn.BatchNorm2d: ModuleCall("batch_norm", _batch_norm),
    nn.BatchNorm3d: ModuleCall("batch_norm", _batch_norm),
    nn.Identity: ModuleCall("identity", _attributes()),
    **{
        dropout: ModuleCall("dropout", _attributes("p", "training"))
        for dropout in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    },
    nn.ReLU: ModuleCall("relu", _attributes()),
    nn.ReLU6: ModuleCall("relu6", _attributes()),
    nn.SiLU: ModuleCall("silu", _attributes()),
    nn.Sigmoid: ModuleCall("sigmoid", _attributes()),
    nn.Tanh: ModuleCall("tanh", _attributes()),
    nn.Hardswish: ModuleCall("hardswish", _attributes()),
    nn.Hardsigmoid: ModuleCall("hardsigmoid", _attributes()),
    nn.Mish: ModuleCall("mish", _attributes()),
    nn.GELU: ModuleCall("gelu", _attributes("approximate")),
    nn.LeakyReLU: ModuleCall("leaky_relu", _attributes("negative_slope")),
    nn.ELU: ModuleCall("elu", _attributes("alpha")),
    nn.Hardtanh: ModuleCall("hardtanh", _attributes("min_val", "max_val")),
    nn.Flatten: ModuleCall("flatten", _attributes("start_dim", "end_dim")),
    nn.AvgPool1d: ModuleCall("avg_pool1d", _attributes("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    **{
        pool: ModuleCall(
            name, _attributes("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        )
        for pool, name in ((nn.AvgPool2d, "avg_pool2d"), (nn.AvgPool3d, "avg_pool3d"))
    },
    **{
        pool: ModuleCall(name, lambda m, path: (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode))
        for pool, name in ((nn.MaxPool1d, "max_pool1d"), (nn.MaxPool2d, "max_pool2d"), (nn.MaxPool3d, "max_pool3d"))
    },
    nn.AdaptiveAvgPool1d: ModuleCall("adaptive_avg_pool1d", _attributes("output_size")),
    nn.AdaptiveAvgPool2d: ModuleCall("adaptive_avg_pool2d", _attributes("output_size")),
    nn.AdaptiveAvgPool3d: ModuleCall("adaptive_avg_pool3d", _attributes("output_size")),
    nn.ZeroPad2d: ModuleCall("pad", _attributes("padding")),
    nn.ConstantPad2d: ModuleCall("pad", lambda m, path: (m.padding, "constant", m.value)),
    nn.ReflectionPad2d: ModuleCall("pad", lambda m, path: (m.padding, "reflect")),
    nn.ReplicationPad2d: ModuleCall("pad", lambda m, path: (m.padding, "replicate")),
}
"""For each module class the function that it is."""


def _layer_norm(m: Any, path: str) -> tuple[Any, ...]:
    return (m.normalized_shape, *_tensors(path, "weight", "bias"), m.eps)


def _rms_norm(m: Any, path: str) -> tuple[Any, ...]:
    return (m.normalized_shape, *_tensors(path, "weight"), m.eps)


def _group_norm(m: Any, path: str) -> tuple[Any, ...]:
    return (m.num_groups, *_tensors(path, "weight", "bias"), m.eps)


def _instance_norm(m: Any, path: str) -> tuple[Any, ...]:
    return (m.running_mean, m.running_var, *_tensors(path, "weight", "bias"), True, 0.0, m.eps)


COUPLING_MODULES: dict[type, ModuleCall] = {
    nn.LayerNorm: ModuleCall("layer_norm", _layer_norm),
    nn.RMSNorm: ModuleCall("rms_norm", _rms_norm),
    nn.GroupNorm: ModuleCall("group_norm", _group_norm),
    **dict.fromkeys(
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), ModuleCall("functional.instance_norm", _instance_norm)
    ),
    nn.Embedding: ModuleCall("embedding", lambda m, path: _tensors(path, "weight")),
    nn.PReLU: ModuleCall("prelu", lambda m, path: _tensors(path, "weight")),
    nn.Softmax: ModuleCall("softmax", _attributes("dim")),
    nn.LogSoftmax: ModuleCall("log_softmax", _attributes("dim")),
    nn.Softmax2d: ModuleCall("softmax", lambda m, path: (-3,)),
    nn.GLU: ModuleCall("glu", _attributes("dim")),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), ModuleCall("interpolate", _attributes())),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), ModuleCall("adaptive_max_pool2d", _attributes())),
    nn.PixelShuffle: ModuleCall("pixel_shuffle", _attributes()),
    nn.PixelUnshuffle: ModuleCall("pixel_unshuffle", _attributes()),
    nn.ChannelShuffle: ModuleCall("channel_shuffle", _attributes("groups")),
    nn.Unflatten: ModuleCall("unflatten", _attributes()),
    **dict.fromkeys(
        (nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink, nn.Threshold),
        ModuleCall("selu", _attributes()),
    ),
}
"""The same for modules that other passes than pruning leave alone (`frontends/torch/ops/coupling_models.py`)."""


def module_call(module: nn.Module, table: dict[type, ModuleCall] = MODULES) -> ModuleCall | None:
    """What a leaf module calls, or None where it is not one of the table or does more than its class says."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = kind.__mro__[1]
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, "forward" in module.__dict__)):
        return None
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) and module.return_indices:
        return None
    return table.get(kind)
