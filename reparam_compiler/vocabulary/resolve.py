"""From what a model calls to a row: by identity, never by a bare name.

A function is the object itself, a tensor method or an attribute is torch's where it is called on a tensor, an operator is one
of the namespace `aten`, a module is of exactly the class, an ONNX type is one of ONNX's own domain. What is none of these goes
by its qualified name: `mylib::add`, `package.module.add`, `package.module.Fold`.

    resolve_function(torch.relu).row.name               # "relu"
    resolve_function(torch.ops.aten.relu_.default)      # the same row, which writes into its first argument
    resolve_function(my_package.relu).name              # "my_package.relu", without a row
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary import elementwise, movement, numbers, pointwise, structured
from reparam_compiler.vocabulary.row import OnnxType, Row

Entry = TypeVar("Entry")

ROWS: dict[str, Row] = {}
"""The vocabulary, by the names of its ops."""
_NAMESPACES = (torch, F, torch._C._nn)
_OWN = (*_NAMESPACES, Tensor, operator, torch.functional)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a model calls.

    name: the last part of the row's (`batch_norm` of `functional.batch_norm`), or that of an op of torch's own that has no row,
        or the qualified name of anything else.
    row: None for what has none.
    writes: whether it writes into its first argument, and gives that.
    """

    name: str
    row: Row | None = None
    writes: bool = False

    @property
    def facts(self) -> Facts:
        """Those of the row; none without one."""
        return Facts.NONE if self.row is None else self.row.facts

    def is_(self, *names: str) -> bool:
        """Whether it is one of these rows."""
        return self.row is not None and self.row.name in names


_FUNCTIONS: dict[Any, Resolved] = {}
_METHODS: dict[str, Resolved] = {}
_ATEN: dict[str, Resolved] = {}
_ATTRIBUTES: dict[str, Resolved] = {}
_MODULES: dict[type, Resolved] = {}
_ONNX: dict[str, tuple[Row, OnnxType]] = {}


def _of_torch(word: str) -> Iterator[Any]:
    """The functions of torch's own that are called so."""
    for namespace in _NAMESPACES:
        function = getattr(namespace, word, None)
        if callable(function) and not isinstance(function, type):
            yield function
    if callable(method := getattr(Tensor, word, None)):
        yield method


def _enter(table: dict[Any, Any], key: Any, value: Any, row: Row) -> None:
    if key in table and (table[key].row if isinstance(table[key], Resolved) else table[key][0]) is not row:
        raise ValueError(f"{key} stands in two rows of the vocabulary: {row.name} and another")
    table[key] = value


def _add_row(row: Row) -> None:
    """Makes a row known; raises ValueError where its name, or something that identifies it, belongs to another row."""
    if row.name in ROWS:
        raise ValueError(f"{row.name} has a row already")
    ROWS[row.name] = row
    shown = row.name.rpartition(".")[2]
    plain, writing = Resolved(shown, row), Resolved(shown, row, writes=True)
    excluded = list(row.excluded)
    for word in row.spelled:
        for spelling, resolved in ((word, plain), (f"{word}_", writing)):
            _enter(_ATEN, spelling, resolved, row)
            if callable(getattr(Tensor, spelling, None)):
                _enter(_METHODS, spelling, resolved, row)
            for function in _of_torch(spelling):
                if not any(function is other for other in excluded):
                    _enter(_FUNCTIONS, function, resolved, row)
    for functions, resolved in ((row.functions, plain), (row.in_place, writing)):
        for function in functions:
            _enter(_FUNCTIONS, function, resolved, row)
    for name in row.attributes:
        _enter(_ATTRIBUTES, name, plain, row)
    for kind in row.modules:
        _enter(_MODULES, kind, plain, row)
    for onnx_type in row.onnx:
        _enter(_ONNX, onnx_type.name, (row, onnx_type), row)


def resolve_function(target: Any) -> Resolved:
    """What a function, a builtin or an operator of a torch library is."""
    if isinstance(target, torch._ops.OpOverload):
        return _operator(target._schema.name)
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _operator(target._qualified_op_name)
    try:
        found = _FUNCTIONS.get(target)
    except TypeError:  # what cannot be hashed is none of torch's
        found = None
    return found or _unknown_function(target)


def resolve_method(word: str) -> Resolved:
    """What a method of a tensor is."""
    return _METHODS.get(word) or (_own(word) if hasattr(Tensor, word) else Resolved(f"Tensor.{word}"))


def resolve_attribute(word: str) -> Resolved:
    """What an attribute of a tensor is."""
    return _ATTRIBUTES.get(word) or Resolved(word if hasattr(Tensor, word) else f"Tensor.{word}")


def resolve_module(kind: type) -> Resolved:
    """What a module of exactly this class is."""
    return _MODULES.get(kind) or unread_module(kind)


def unread_module(kind: type) -> Resolved:
    """A module without a row, or one that does more than its class says; torch's own keep their short names."""
    return Resolved(kind.__name__ if getattr(nn, kind.__name__, None) is kind else qualified(kind))


def by_onnx(onnx_type: str) -> tuple[Row, OnnxType] | None:
    """The row of a type of ONNX's own domain, and what the row says of the type."""
    return _ONNX.get(onnx_type)


def onnx_facts(onnx_type: str) -> Facts:
    """The facts of a type of ONNX's own domain."""
    known = _ONNX.get(onnx_type)
    return Facts.NONE if known is None else known[0].facts


def check_registered(name: str) -> None:
    """Raises ValueError for a name that no op goes by: what is none of torch's or ONNX's has a qualified one."""
    own = name in ROWS or name in _ONNX or _own_op(name)
    if not own and "::" not in name and "." not in name:
        raise ValueError(
            f"{name} is no op of torch's, ONNX's or ours; an operator goes by its qualified name (mylib::{name}),"
            f" a function or a module by that of its package (package.module.{name})"
        )


def _own_op(name: str) -> bool:
    return any(hasattr(namespace, name) for namespace in (*_OWN, torch.ops.aten))


def qualified(thing: Any) -> str:
    """`package.module.name`, of a function or a class; of any other callable that of its class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _operator(schema_name: str) -> Resolved:
    namespace, _, word = schema_name.partition("::")
    if namespace != "aten":
        return Resolved(schema_name)
    return _ATEN.get(word) or _own(word)


def _unknown_function(target: Any) -> Resolved:
    word = getattr(target, "__name__", None)
    if isinstance(word, str) and any(getattr(namespace, word, None) is target for namespace in _OWN):
        return Resolved(word) if target in _OPERATORS else _own(word)
    return Resolved(qualified(target))


def _own(word: str) -> Resolved:
    """An op of torch's own without a row; what ends in `_` writes into its first argument."""
    if word.endswith("_") and not word.endswith("__"):
        return Resolved(word[:-1], writes=True)
    return Resolved(word)


_OPERATORS: frozenset[Any] = frozenset(
    function for name, function in vars(operator).items() if callable(function) and not name.startswith("_")
)
for _row in (*pointwise.ROWS, *elementwise.ROWS, *movement.ROWS, *structured.ROWS, *numbers.ROWS):
    _add_row(_row)

MATH: Mapping[str, Callable[..., Tensor]] = {row.name: row.math for row in ROWS.values() if row.math is not None}
"""The torch function of each op that is evaluated by its row."""


def by_row_name(table: Mapping[str, Entry]) -> dict[Row, Entry]:
    """A table keyed by rows, from one keyed by their names; raises KeyError for a name that is no row's."""
    return {ROWS[name]: entry for name, entry in table.items()}
