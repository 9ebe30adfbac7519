"""Values that depend on parameters alone: kept, not as numbers, but as how they are computed in float64.

A parametrization, a kernel computed in the graph, an MLP of a parameter, a kernel that is filled in place: each call of such
values is one, whatever it calls, unless it is random.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam_compiler.frontends.torch.call import Unsupported
from reparam_compiler.frontends.torch.hooks import does_more_than_forward, written_class

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_ROUNDED = 64
"""Units in the last place that a computation in the model's dtype may be off by, beside the largest element."""


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value that depends on parameters alone.

    value: in the model's dtype. compute: gives it anew in float64; what it has computed on the way is kept in its argument.
    origin: its name in the model, where it is a tensor of its own.
    """

    value: Any
    compute: Callable[[dict["Constant", Any]], Any]
    origin: str | None = None
    _is_exact: list[bool] = field(default_factory=list)

    def float64(self, known: dict["Constant", Any] | None = None) -> Any:
        """The value, from parameters in float64 where that is the same but for rounding; each value is computed once."""
        known = {} if known is None else known
        if self not in known:
            known[self] = self._decided(in_float64(lambda: self.compute(known), self.value))
        return known[self]

    def _decided(self, exact: Any) -> Any:
        """`nearest` of the two values, which is found out once: what is folded is loaded again and again."""
        if self.origin is not None:
            return exact
        if not self._is_exact:
            self._is_exact.append(nearest(exact, self.value) is exact)
        return exact if self._is_exact[0] else nearest(exact, self.value)

    @staticmethod
    def stored(origin: str, tensor: Tensor) -> "Constant":
        """A tensor of the model."""
        exact = tensor.is_floating_point()
        return Constant(tensor, lambda known: tensor.detach().double() if exact else tensor.detach(), origin)


class _Pure(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses random ops, so that folding never freezes one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unsupported(f"{func} is random")
        return func(*args, **(kwargs or {}))


def folded(node: fx.Node, module: nn.Module, sources: Mapping[fx.Node, Constant], *, writes: bool) -> Constant:
    """A call of constants as a constant; raises Unsupported where it is random. One that writes gets copies."""

    arguments = node.args, dict(node.kwargs)  # those of now: the node may be erased when the model is written in place

    def evaluate(value_of: Callable[[Constant], Any]) -> Any:
        values = {source: value_of(constant) for source, constant in sources.items()}
        if writes:
            values = {source: v.clone() if isinstance(v, Tensor) else v for source, v in values.items()}
        args, kwargs = fx.map_arg(arguments, values.__getitem__)
        with torch.no_grad():
            return call(node, module, args, kwargs)

    def compute(known: dict[Constant, Any]) -> Any:
        """What a call rounds on its way (`x.float()`) goes on in float64, as what it meets is."""
        return _pytree.tree_map(_exact, evaluate(lambda constant: constant.float64(known)))

    with _Pure():  # type: ignore[no-untyped-call]
        value = evaluate(lambda constant: constant.value)
    return Constant(value, compute if sources else lambda known: _exact(value))


def assigned(into: Constant, index: tuple[slice, ...], value: Constant | float) -> Constant:
    """A constant with another one written to a part of it."""

    def write(base: Any, part: Any) -> Any:
        written = base.clone()
        written[index] = part
        return written

    with torch.no_grad():
        now = write(into.value, value.value if isinstance(value, Constant) else value)
    return Constant(
        now, lambda known: write(into.float64(known), value.float64(known) if isinstance(value, Constant) else value)
    )


def in_float64(compute: Callable[[], Any], own: Any) -> Any:
    """What is computed from parameters in float64; the model's own value where an op on the way takes no float64."""
    try:
        return compute()
    except (RuntimeError, TypeError, ValueError, IndexError):  # a kernel for float32 alone, a view of the bits of a float32
        return _pytree.tree_map(_exact, own)


def nearest(exact: Any, own: Any) -> Any:
    """A value that was computed in float64, or the model's own where they are not the same but for rounding.

    Rounding to steps, comparisons and casts make a jump of a difference in the last place.
    """
    if not isinstance(own, Tensor) or not isinstance(exact, Tensor) or not own.numel():
        return exact
    if not own.is_floating_point():
        return own
    wide = own.detach().double()
    room = _ROUNDED * torch.finfo(own.dtype).eps * wide[wide.isfinite()].abs().max() if wide.isfinite().any() else 0.0
    apart = (exact.double() - wide).abs() if exact.shape == own.shape else wide.abs() + torch.inf
    return exact if bool(((apart <= room) | (exact == wide)).all()) else wide


def _exact(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def of_a_value(tensor: Tensor, name: str) -> Constant:
    """The dtype or the device of a value of the graph: in float64 all floats are of it."""
    value = getattr(tensor, name)
    exact = torch.float64 if name == "dtype" and tensor.is_floating_point() else value
    return Constant(value, lambda known: exact)


def is_pure(module: nn.Module) -> bool:
    """True for a module of torch's that gives the same for the same input and keeps nothing of it."""
    own = written_class(module).__module__.startswith("torch.nn.modules")
    keeps = isinstance(module, nn.modules.batchnorm._NormBase) or parametrize.is_parametrized(module)
    return own and not does_more_than_forward(module) and not (keeps and module.training)


def call(node: fx.Node, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a node on values; a module in the dtype that it is given."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        floating = [v.dtype for v in args if isinstance(v, Tensor) and v.is_floating_point()]
        called = copy.deepcopy(module.get_submodule(str(node.target)))
        return (called.to(floating[0]) if floating else called)(*args, **kwargs)
    target: Any = node.target
    if getattr(getattr(target, "overloadpacket", None), "__name__", "") in _RECURRENT:
        _check_states(*args)
    return target(*args, **kwargs)


def _check_states(x: Tensor, states: Any, *others: Any) -> None:
    """Raises RuntimeError for states of another batch than x has: torch's kernel does not check them."""
    first = states[0] if isinstance(states, list | tuple) else states
    batch_first = bool(others[-1])
    if x.ndim == first.ndim == 3 and x.shape[0 if batch_first else 1] != first.shape[1]:
        raise RuntimeError(f"its states are for a batch of {first.shape[1]}, and it is given {tuple(x.shape)}")
