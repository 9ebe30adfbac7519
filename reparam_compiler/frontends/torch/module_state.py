"""What a module holds: put back after its code ran, and exchanged wherever it is held."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Puts back the attributes of a module and of all in it, and what their lists, sets and mappings held.

    >>> layer = nn.ReLU()
    >>> with attributes_kept(layer):
    ...     layer.seen = 1
    >>> hasattr(layer, "seen")
    False

    What is written into a tensor stays written.
    """
    before = [(module, dict(vars(module)), _contents(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, held, contents in before:
            vars(module).clear()
            vars(module).update(held)
            for container, elements in contents:
                container.clear()
                container.extend(elements) if isinstance(container, list) else container.update(elements)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers among a module's attributes, each with a copy of what it holds."""
    return [(value, type(value)(value)) for value in vars(module).values() if type(value) in (list, dict, set)]


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts back what buffers held that were written to."""
    before = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, elements in before:
                if buffer._version != version:
                    buffer.copy_(elements)


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What was exchanged: the tables, the keys, and what stood there before."""

    before: list[tuple[Any, Any, Any]]

    def undo(self) -> None:
        """Makes the module what it was."""
        for table, key, value in reversed(self.before):
            table[key] = value


def exchange(module: nn.Module, new: Mapping[Any, Any]) -> Exchanged:
    """Puts layers and tensors in the place of others, wherever a module or one in it holds them: in lists and mappings too."""
    by_id, exchanged = {id(old): value for old, value in new.items()}, Exchanged([])
    for part in [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]:
        for table in (part._modules, part._parameters, part._buffers, vars(part)):
            _exchange(table, by_id, exchanged.before)
    return exchanged


def _exchange(table: Any, new: Mapping[int, Any], before: list[tuple[Any, Any, Any]], depth: int = 3) -> None:
    for key, value in list(table.items() if isinstance(table, dict) else enumerate(table)):
        if id(value) in new:
            before.append((table, key, value))
            table[key] = new[id(value)]
        elif type(value) is tuple and any(id(part) in new for part in value):
            before.append((table, key, value))
            table[key] = tuple(new.get(id(part), part) for part in value)
        elif type(value) in (list, dict) and depth and key not in ("_modules", "_parameters", "_buffers"):
            _exchange(value, new, before, depth - 1)


def register(model: nn.Module, path: str, tensor: Tensor) -> None:
    """Puts a tensor at a path, a parameter or a buffer as it is one; modules on the way that are not there are made."""
    holder_path, _, leaf = path.rpartition(".")
    holder = model
    for step in filter(None, holder_path.split(".")):
        if not hasattr(holder, step):
            holder.add_module(step, nn.Module())
        holder = getattr(holder, step)
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(leaf, tensor)
    else:
        holder.register_buffer(leaf, tensor)


def without_compiled(model: nn.Module) -> nn.Module:
    """A module with what torch.compile was given in the place of what it made, which runs the old layers for ever."""
    if is_compiled(model):
        return without_compiled(model.get_submodule("_orig_mod"))
    if compiled := {part: part.get_submodule("_orig_mod") for part in model.modules() if is_compiled(part)}:
        exchange(model, compiled)
    return model


def in_training_mode(model: nn.Module) -> list[str]:
    """The names of the modules that are in training mode; fx holds children in bare Modules, which say nothing of the mode."""
    return [name for name, part in model.named_modules() if part.training and type(part) is not nn.Module]


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile made a module. Its part of torch takes a second to load, and is not loaded to be asked."""
    loaded = sys.modules.get("torch._dynamo.eval_frame")
    return loaded is not None and isinstance(module, loaded.OptimizedModule)
