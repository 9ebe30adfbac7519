"""Why a conv, linear or norm of a torch model is not read: what calling it does besides, or weights that are no constants."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from reparam_compiler.frontends.torch.hooks import HOOKS, does_more_than_forward, written_class
from reparam_compiler.ir.ops import ON_QUANTIZED, QUANTIZED
from reparam_compiler.vocabulary.resolve import ROWS, resolve_function, resolve_module
from reparam_compiler.vocabulary.row import Row

_SPATIAL = {f"{conv}{rank}d": rank for conv in ("conv", "conv_transpose") for rank in (1, 2, 3)}
"""The spatial axes of each conv."""
_LAYERS = frozenset({*_SPATIAL, "convolution", "linear", "batch_norm", "functional.batch_norm"})
_TAKEN_OFF: tuple[tuple[type, str, str], ...] = (
    (prune.BasePruningMethod, "a pruning mask", "torch.nn.utils.prune.remove"),
    (WeightNorm, "a weight norm", "torch.nn.utils.remove_weight_norm"),
    (SpectralNorm, "a spectral norm", "torch.nn.utils.remove_spectral_norm"),
)
"""Hooks that compute a weight: what that is, and what makes it a part of the weight."""
_QUANTIZED = tuple(f"torch.ao.nn.{part}" for part in ("quantized", "qat", "intrinsic.quantized", "intrinsic.qat"))
_CALLED_WHOLE = "is a leaf of the trace, so the layers in it are not read"
_OF_EACH_BATCH = "normalizes by the statistics of each batch (track_running_stats=False)"
_OF_ONE_SAMPLE = "is called on one sample, without a batch; give the model a batch of one, x[None]"
_KINDS = {"_backward_hooks": "backward hook", "_backward_pre_hooks": "backward hook", "_forward_pre_hooks": "forward pre-hook"}


def why_module(module: nn.Module) -> str:
    """What stands in the way of reading a leaf module that is a layer; empty for every other one."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is a script (torch.jit)"
    kind = written_class(module)
    if kind.__module__.startswith(_QUANTIZED):
        return QUANTIZED if hasattr(module, "weight") else ON_QUANTIZED
    row = resolve_module(kind).row
    if not is_layer(row):
        return _CALLED_WHOLE if row is None and _holds_layers(module, kind) else ""
    if not does_more_than_forward(module):
        return _OF_EACH_BATCH if row is ROWS["batch_norm"] and module.running_mean is None else ""
    for table in HOOKS:
        for hook in getattr(module, table).values():
            if callable(hook):
                return f"has {_hook(_KINDS.get(table, 'forward hook'), hook)}"
    return f"has a {'forward' if 'forward' in vars(module) else '__call__'}() of its own"


def _holds_layers(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is a container or a module of the model's own, called as it is, that has layers in it."""
    is_torch_s = kind.__module__.startswith("torch.nn.") and kind is not nn.Sequential
    if is_torch_s or isinstance(module, fx.GraphModule) or does_more_than_forward(module):
        return False
    parts = (written_class(part) for part in module.modules() if part is not module)
    return any(is_layer(resolve_module(part).row) for part in parts)


def _hook(kind: str, hook: Any) -> str:
    for method, what, remove in _TAKEN_OFF:
        if isinstance(hook, method):
            return f"{what} that a hook applies; {remove} makes it a part of the weight"
    return f"a {kind} ({getattr(hook, '__name__', type(hook).__name__)})"


def why_call(node: fx.Node, row: Row | None, constants: Collection[fx.Node], tensors: Mapping[str, tuple[str, Tensor]]) -> str:
    """What stands in the way of reading the call of a layer; empty for any other call, or where its weights are constants.

    constants: the nodes that no input has a part in. tensors: of the nodes that stand for a tensor of the model its path.
    """
    mean = {"batch_norm": 3, "functional.batch_norm": 1}.get(row.name) if row is not None else None
    if mean is not None and len(node.args) > mean and node.args[mean] is None:
        return _OF_EACH_BATCH
    weights = node.all_input_nodes[1:] if is_layer(row) else []
    return next(filter(None, (_what_it_is(weight, constants, tensors) for weight in weights if weight not in constants)), "")


def why_unbatched(row: Row | None, x: Any) -> str:
    """What stands in the way of reading a conv that is called on one sample; empty for every other call."""
    spatial = _SPATIAL.get(row.name) if row is not None else None
    return _OF_ONE_SAMPLE if spatial is not None and isinstance(x, Tensor) and x.ndim == spatial + 1 else ""


def _what_it_is(weight: fx.Node, constants: Collection[fx.Node], tensors: Mapping[str, tuple[str, Tensor]]) -> str:
    origin: Any = weight
    while isinstance(origin, fx.Node) and origin not in constants:
        if origin.name in tensors:
            return f"has a weight that the model writes to, {tensors[origin.name][0]}"
        if origin.op == "placeholder":
            is_input = "that is" if origin is weight else "that is computed from"
            return f"has a weight {is_input} an input of the model, {origin.target}"
        if origin.op == "call_function" and "quantize" in resolve_function(origin.target).name:
            return QUANTIZED
        origin = next((source for source in origin.all_input_nodes if source not in constants), None)
    return ""


def is_layer(row: Row | None) -> bool:
    """Whether an op is a conv, a linear or a norm."""
    return row is not None and row.name in _LAYERS
