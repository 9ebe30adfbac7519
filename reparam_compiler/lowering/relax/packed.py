"""Packed weights in a Relax module: constants while it is lowered, parameters of `main` when it is compiled.

    call_tir(conv, x, const(packed W))   --lifted-->   main(x, w): call_tir(conv, x, w)        weights [W]

A pass that packs a weight notes here what it packed and how. So the library holds no weights, and an artifact holds each as the
model does. A large constant that nobody noted, such as a table of embeddings, is one that is not packed; a small one stays a
constant of the library.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from jaxtyping import Shaped
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.runtime.stored import Packing, Packings
from reparam_compiler.lowering.runtime.virtual_machines import PLAIN
from reparam_compiler.lowering.runtime.weights import Store, Weight

STORED = PLAIN | {"bool"}
"""The dtypes of constants that may be weights."""


@dataclass(frozen=True, slots=True)
class _Noted:
    """The weights that a module reads, and the store of its model's."""

    weights: list[Weight]
    store: Store


_NOTED: ContextVar[_Noted | None] = ContextVar("noted", default=None)


@contextmanager
def noted(store: Store | None = None) -> Iterator[list[Weight]]:
    """The weights that are packed in this block. store: of those that other variants of the model have packed."""
    found = _Noted([], Store() if store is None else store)
    token = _NOTED.set(found)
    try:
        yield found.weights
    finally:
        _NOTED.reset(token)


def packed_constant(stored: Shaped[np.ndarray, "..."], packing: Packing, packings: Packings) -> Any:
    """The Relax constant of a weight, packed: once for all that are equal, as those of the steps of an LSTM are."""
    found = _NOTED.get() or _Noted([], Store())
    weight = found.store.packed(stored, packing, packings)
    if weight not in found.weights:
        found.weights.append(weight)
    return relax.const(weight.value)


def packings_of(stored: Shaped[np.ndarray, "..."]) -> Sequence[Packing | None]:
    """The packings that a weight is in already, which costs no memory to read again."""
    found = _NOTED.get()
    return found.store.packings_of(stored) if found is not None else ()


def lifted(module: Any, weights: Iterable[Weight], store: Store, least: int | None) -> tuple[Any, tuple[Weight, ...]]:
    """The module with its weights as further parameters of `main`, and the weights in the order of the parameters.

    Args:
        weights: what was packed. store: of the model's weights.
        least: the bytes from which another constant is a weight too; None where no constant is one, packed or not.
    """
    if least is None:
        return module, ()
    at = {_place(weight.value): weight for weight in weights}
    lifter = _Lifter(module, at, store, least)
    main = module["main"]
    body = lifter.visit_expr(main.body)
    if not lifter.taken:
        return module, ()
    params = [*main.params, *lifter.taken.values()]
    function = relax.Function(params, body, main.ret_ty, main.is_pure, main.attrs)
    module = relax.transform.Normalize()(_with_main(module, function))
    return module, tuple(at[place] for place in lifter.taken)


def _place(value: Any) -> int:
    """The address of a constant's data; 0 of what is no tensor."""
    return int(value.data_ptr()) if isinstance(value, tvm.runtime.Tensor) else 0


def _is_large(value: Any, least: int) -> bool:
    """Whether a constant is a tensor of so many bytes, which numpy has a dtype for."""
    if not isinstance(value, tvm.runtime.Tensor) or str(value.dtype) not in STORED:
        return False
    return math.prod(map(int, value.shape)) * np.dtype(str(value.dtype)).itemsize >= least


def _with_main(module: Any, main: Any) -> Any:
    module = module.clone()
    module.update_func(module.get_global_var("main"), main)
    return module


@mutator
class _Lifter(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Puts a variable in place of each constant whose data lies at a known address, or that has so many bytes."""

    def __init__(self, module: Any, known: dict[int, Weight], store: Store, least: int) -> None:
        super().__init__(module)
        self.known = known
        self.store = store
        self.least = least
        self.taken: dict[int, Any] = {}

    def visit_generic_const_(self, op: Any) -> Any:
        place = _place(op.value)
        if place not in self.known and _is_large(op.value, self.least):
            self.known[place] = self.store.packed(op.value.numpy(), None, {})
        if place not in self.known:
            return op
        if place not in self.taken:
            self.taken[place] = relax.Var(f"weight_{len(self.taken)}", op.ty)
        return self.taken[place]
