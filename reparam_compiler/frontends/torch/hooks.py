"""What calling a module does beside the `forward` of its class: hooks, and a `forward` or a `__call__` of its own.

A tracer sees none of these, and a module that is written anew would lose them.
"""

from torch import fx, nn
from torch.nn.utils import parametrize

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
"""The tables of a module that hold what runs when it is called, or its gradient is."""


def does_more_than_forward(module: nn.Module) -> bool:
    """True where calling the module does something else than the `forward` of its class.

    >>> conv = nn.Conv2d(3, 8, 3)
    >>> does_more_than_forward(conv)
    False
    >>> hook = conv.register_full_backward_pre_hook(lambda module, gradient: None)
    >>> does_more_than_forward(conv)
    True
    """
    calls_otherwise = type(module).__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule)
    return any(getattr(module, name) for name in HOOKS) or "forward" in vars(module) or calls_otherwise


def written_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module's author named; torch puts another one before it where a tensor is parametrized."""
    kind: type[nn.Module] = type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)
    return kind
