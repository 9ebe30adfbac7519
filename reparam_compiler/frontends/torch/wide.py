"""A model in float64 that holds no second copy of its large weights: each is widened anew for every op that reads it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from reparam_compiler.core.kernel import Ints
from reparam_compiler.frontends.torch.tensors import deep_copy

LARGE = 2**18
"""Elements from which on a weight is made when it is read."""
Module = TypeVar("Module", bound=nn.Module)
_OF_THE_STAND_IN = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "ndim", "grad", "grad_fn", "requires_grad", "is_leaf")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point),
    torch._has_compatible_shallow_copy_type,  # which Module.double() asks
}
_GET_DEVICE, _GET_DATA, _SET_DATA = Tensor.device.__get__, Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]


class _Elements:
    """What a stand-in and its aliases share. They are loaded for each op, but for those that were written to."""

    def __init__(self, load: Callable[[], Tensor], device: torch.device) -> None:
        self.load, self.device = load, device

    def hold(self, written: Tensor) -> None:
        """Keeps what an op wrote."""
        self.load = lambda: written


class WideTensor(Tensor):
    """A float64 tensor that is made when an op reads it; on the device meta, it has the shape and no elements.

    >>> wide_tensor(lambda: torch.ones(2, 3).double(), (2, 3), "cpu").sum()
    tensor(6., dtype=torch.float64)
    """

    elements: _Elements

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own = args[0] if args and isinstance(args[0], cls) else None
        if own is not None and func in (Tensor.requires_grad_, Tensor.double):
            return own
        if own is not None and func in (Tensor.detach, _GET_DATA):
            return _standing_in(own.shape, own.elements)
        if own is not None and func == _GET_DEVICE:
            return own.elements.device
        if own is not None and func == _SET_DATA and isinstance(args[1], cls):
            own.elements = args[1].elements
            return None
        if func in _OF_THE_STAND_IN:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An op on the elements; what it wrote to is held."""
    made: dict[_Elements, Tensor] = {}

    def elements(tensor: WideTensor) -> Tensor:
        if tensor.elements not in made:
            made[tensor.elements] = tensor.elements.load()
        return made[tensor.elements]

    given, named = _pytree.tree_map_only(WideTensor, elements, (tuple(args), dict(kwargs)))
    before = {held: tensor._version for held, tensor in made.items()}
    result = func(*given, **named)
    for held, tensor in made.items():
        if tensor._version != before[held]:
            held.hold(tensor)
    return result


def wide_tensor(load: Callable[[], Tensor], shape: Ints, device: torch.device | str) -> WideTensor:
    """A stand-in for what `load` gives, a new float64 tensor of this shape on this device each time."""
    return _standing_in(shape, _Elements(load, torch.device(device)))


def _standing_in(shape: Sequence[int], elements: _Elements) -> WideTensor:
    made = torch.empty(tuple(shape), dtype=torch.float64, device="meta").as_subclass(WideTensor)
    made.elements = elements
    return made


def in_float64(module: Module) -> Module:
    """A copy of a module in float64. Its large weights are those of the module itself, which must not change while it is used.

    >>> layer = nn.Linear(512, 512)
    >>> wide = in_float64(layer)
    >>> type(wide.weight).__name__, wide(torch.zeros(1, 512).double()).dtype
    ('WideTensor', torch.float64)
    """
    memo: dict[int, Any] = {}
    for weight in module.parameters():
        if type(weight) is nn.Parameter and weight.is_floating_point() and weight.numel() >= LARGE:
            load = weight.detach().clone if weight.dtype == torch.float64 else weight.detach().double
            memo[id(weight)] = nn.Parameter(wide_tensor(load, weight.shape, weight.device), requires_grad=False)
    return deep_copy(module, memo).double()
