"""What calling a module does beside the `forward` of its class: hooks, and a `forward` or a `__call__` of its own.

A tracer sees none of these, and a module that is written anew would lose them.
"""

import copy
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
"""The tables of a module that hold what runs when it is called, or its gradient is."""


def has_hooks(module: nn.Module) -> bool:
    """Whether something else runs when the module is called, or when its gradient is."""
    return any(getattr(module, name) for name in HOOKS)


def does_more_than_forward(module: nn.Module) -> bool:
    """True where calling the module does something else than the `forward` of its class.

    >>> conv = nn.Conv2d(3, 8, 3)
    >>> does_more_than_forward(conv)
    False
    >>> hook = conv.register_full_backward_pre_hook(lambda module, gradient: None)
    >>> does_more_than_forward(conv)
    True
    """
    return has_hooks(module) or "forward" in vars(module) or calls_otherwise(module)


def calls_otherwise(module: nn.Module) -> bool:
    """Whether a module has a `forward` of its own that is no method of it, or a class that is called in another way."""
    own_call = type(module).__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule)
    return own_call or ("forward" in vars(module) and own_forward(module) is None)


def why_apart(module: nn.Module) -> str:
    """Why a trace does not enter a module that has parts; nothing for any other, and for a script, which nobody can enter."""
    if not list(module.children()) or isinstance(module, torch.jit.ScriptModule):
        return ""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return f"is a {type(module).__name__}"
    return "has hooks" if has_hooks(module) else ""


def has_forward(module: nn.Module) -> bool:
    """Whether a module can be called; one that only holds others has torch's own `forward`, which raises."""
    return "forward" in vars(module) or type(module).forward is not nn.Module.forward


def passed_on_to(module: nn.Module) -> nn.Module | None:
    """The one module that a wrapper gives its arguments to, whatever they are; None for a module that has its own.

    >>> net = nn.Linear(3, 8)
    >>> passed_on_to(torch.optim.swa_utils.AveragedModel(net)).in_features, passed_on_to(net)
    (3, None)
    """
    if isinstance(module, nn.DataParallel):
        return module.get_submodule("module")
    if isinstance(module, torch.jit.ScriptModule | nn.parallel.DistributedDataParallel) or not has_forward(module):
        return None
    taken = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    only_stars = bool(taken) and taken <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    children = list(module.children())
    return children[0] if only_stars and len(children) == 1 else None


def innermost(module: nn.Module) -> nn.Module:
    """The module in all wrappers that pass on what they are given; a module itself where it is none."""
    inner = passed_on_to(module)
    return module if inner is None else innermost(inner)


def signature_of(module: nn.Module) -> inspect.Signature:
    """What a module is called with; a wrapper that passes on what it is given is called as the module in it."""
    return inspect.signature(innermost(module).forward)


def own_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The function of a method that was set on a module as its `forward`: `net.forward = net.forward_deployed`."""
    forward = vars(module).get("forward")
    return forward.__func__ if isinstance(forward, MethodType) and forward.__self__ is module else None


def without_hooks(module: nn.Module) -> nn.Module:
    """The same module, with all in it, less its own hooks; the module itself where it has none."""
    if not has_hooks(module):
        return module
    bare = copy.copy(module)
    for name in HOOKS:
        setattr(bare, name, type(getattr(module, name))())
    return bare


def copy_hooks(module: nn.Module, to: nn.Module) -> None:
    """Gives a module the hooks of another one, but those of torch's own: they read attributes that no other module has."""
    for name in HOOKS:
        hooks = getattr(module, name).items()
        getattr(to, name).update({key: hook for key, hook in hooks if not _is_torch_s(hook)})


def _is_torch_s(hook: Callable[..., Any]) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith("torch.")


def written_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module's author named; torch puts another one before it where a tensor is parametrized."""
    kind: type[nn.Module] = type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)
    return kind
