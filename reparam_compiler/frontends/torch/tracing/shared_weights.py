"""A copy of a module that holds no second copy of its large weights: it has those of the module until it is given away."""

from typing import Any

import torch
from torch import Tensor, nn

from reparam_compiler.frontends.torch.hooks import has_hooks
from reparam_compiler.frontends.torch.wide import LARGE


def share_weights(copied: nn.Module, model: nn.Module) -> frozenset[int]:
    """Lets the layers of a copy read the weights of the model where these are equal; by `id` those parameters of the copy.

    They are large ones of torch's own layers without hooks, which never write to them. One that a list, a tuple or a mapping
    of a module holds as well stays a copy.
    """
    copies, originals, shared = dict(copied.named_modules()), dict(model.named_modules()), set[int]()
    tables = [table for part in copied.modules() for name, table in vars(part).items() if name != "_parameters"]
    elsewhere = {id(value) for table in tables for value in _tensors(table)}
    for path in copies.keys() & originals.keys():
        layer, own = copies[path], originals[path]
        if type(own) is not type(layer) or not type(layer).__module__.startswith("torch.nn.modules.") or has_hooks(layer):
            continue
        weights = dict(own.named_parameters(recurse=False))
        for name, parameter in layer.named_parameters(recurse=False):
            if id(parameter) not in elsewhere and _may_be_shared(parameter, weights[name]):
                parameter.data = weights[name].data
                shared.add(id(parameter))
    return frozenset(shared)


def make_own(module: nn.Module, shared: frozenset[int]) -> None:
    """Gives the parameters of a module that are shared elements of their own."""
    for parameter in module.parameters():
        if id(parameter) in shared:
            parameter.data = parameter.data.clone()


def _may_be_shared(parameter: nn.Parameter, original: nn.Parameter) -> bool:
    plain = all(type(each) is nn.Parameter and not each.is_inference() for each in (parameter, original))
    return plain and parameter.numel() >= LARGE and torch.equal(parameter, original)


def _tensors(held: Any) -> list[Tensor]:
    """A tensor, or those in a list, a tuple or a mapping."""
    values = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else (held,)
    return [value for value in values if isinstance(value, Tensor)]
