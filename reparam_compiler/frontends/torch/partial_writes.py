"""Writes to a part of a value, as tracers leave them: `base[cuts] = value`.

    setitem(y, (:, :, 0:1), v)                                       a graph of torch.compile
    copy_(slice(y, 2, 0, 1), expand(v, …))                           an exported program; fill_ and zero_ too
    slice_scatter(y, copy(slice(y, 2, 0, 1), expand(v, …)), 2, 0, 1)   the same program, decomposed

A write along several axes is a slice of a slice, and a scatter into a scatter. The value is broadcast, so whatever expands it
is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from reparam_compiler.frontends.torch.arguments import by_own_words
from reparam_compiler.frontends.torch.call import Unsupported
from reparam_compiler.frontends.torch.ops.shapes import index_cuts
from reparam_compiler.vocabulary.resolve import Resolved

Cuts = tuple[tuple[int, int, int | None], ...]
_FAR = 2**62
_KEYS = ("dim", "start", "end", "step")


@dataclass(frozen=True, slots=True)
class Part:
    """`base[cuts] = value`; value is a node or a number.

    through: the nodes between the write and these, which nobody else may need.
    """

    base: fx.Node
    cuts: Cuts
    value: Any
    through: tuple[fx.Node, ...] = ()


@dataclass(frozen=True, slots=True)
class PartReader:
    """Finds what a node writes to.

    resolve: the op that a call is. rank_of: how many axes a value has; raises Unsupported where it is not known.
    """

    resolve: Callable[[fx.Node], Resolved]
    rank_of: Callable[[fx.Node], int]

    def written(self, node: fx.Node) -> Part | None:
        """What an in-place call writes, or None where that is no part with fixed bounds, or all of a value."""
        try:
            match self._name(node), node.args:
                case "setitem", (fx.Node() as into, index, value):
                    part = self._cut(self._view(into), index_cuts(index, lambda: self.rank_of(into)))
                    return self._with_value(part, value)
                case "copy" | "fill", (fx.Node() as into, value, *_):
                    return self._with_value(self._view(into), value)
                case "zero", (fx.Node() as into,):
                    return self._with_value(self._view(into), 0.0)
                case _:
                    return None
        except Unsupported:
            return None

    def scattered(self, node: fx.Node) -> Part:
        """What a `slice_scatter` gives; raises Unsupported where that is no part with fixed bounds."""
        into, source = self._operands(node)
        part = self._cut(Part(into, (), None), [self._bounds(node, into, 2)])
        whole = self._view(into)
        if not whole.cuts:
            part = replace(part, base=whole.base, through=whole.through)
        while isinstance(source, fx.Node) and self._name(source) == "slice_scatter":
            inner_into, inner = self._operands(source)
            view = self._view(inner_into)
            if view.base is not part.base or set(view.cuts) != set(part.cuts):
                break
            through = (*part.through, source, *view.through)
            part = self._cut(replace(part, through=through), [self._bounds(source, inner_into, 2)])
            source = inner
        if isinstance(source, fx.Node) and self._name(source) in ("copy", "zero", "fill"):
            view = self._view(source.args[0])
            part = replace(part, through=(*part.through, source, *view.through))
            return self._with_value(part, 0.0 if self._name(source) == "zero" else source.args[1])
        return self._with_value(part, source, broadcast=False)

    def _with_value(self, part: Part, value: Any, *, broadcast: bool = True) -> Part:
        """The part with what is written. broadcast: whether the write does that itself; `slice_scatter` does not."""
        if not part.cuts:
            raise Unsupported("a write to all of a value")
        through = list(part.through)
        while broadcast and isinstance(value, fx.Node) and self._name(value) in ("expand", "expand_as", "broadcast_to"):
            through.append(value)
            value = value.args[0]
        if isinstance(value, bool) or not isinstance(value, int | float | fx.Node):
            raise Unsupported(f"{value!r} written to a part of a value")
        return Part(part.base, tuple(sorted(part.cuts)), value, tuple(through))

    def _view(self, node: Any) -> Part:
        """The value that a node is a slice of, or a slice of a slice."""
        if not isinstance(node, fx.Node):
            raise Unsupported("a view of no value")
        name = self._name(node)
        if name in ("detach", "alias") and isinstance(node.args[0], fx.Node):
            inner = self._view(node.args[0])
            return replace(inner, through=(*inner.through, node)) if inner.cuts else Part(node, (), None)
        if name not in ("slice", "getitem"):
            return Part(node, (), None)
        into = node.args[0]
        if not isinstance(into, fx.Node):
            return Part(node, (), None)
        try:
            sliced = name == "slice"
            bounds = [self._bounds(node, into, 1)] if sliced else index_cuts(node.args[1], lambda: self.rank_of(into))
            return self._cut(self._view(into), bounds, node)
        except Unsupported:  # another view, which a write to a part of it changes as a whole
            return Part(node, (), None)

    def _cut(self, part: Part, bounds: list[tuple[int, Any, Any, Any]], *through: fx.Node) -> Part:
        """The part with more bounds; those from end to end are no bounds."""
        cuts = list(part.cuts)
        for axis, start, stop, step in bounds:
            if step != 1 or not isinstance(start, int) or not isinstance(stop, int | None):
                raise Unsupported("a part with computed bounds")
            stop = None if stop is None or stop >= _FAR else stop
            if (start, stop) == (0, None):
                continue
            if any(known == axis for known, _, _ in cuts):
                raise Unsupported("a part of a part along one axis")
            cuts.append((axis, start, stop))
        return replace(part, cuts=tuple(cuts), through=(*part.through, *through))

    def _operands(self, node: fx.Node) -> tuple[fx.Node, Any]:
        into = node.args[0] if node.args else None
        if not isinstance(into, fx.Node) or len(node.args) < 2:
            raise Unsupported("a scatter into no value")
        return into, node.args[1]

    def _bounds(self, node: fx.Node, into: fx.Node, first: int) -> tuple[int, Any, Any, Any]:
        given = dict(zip(_KEYS, node.args[first:], strict=False)) | by_own_words(node.kwargs)
        axis = given.get("dim", 0)
        if not isinstance(axis, int):
            raise Unsupported("an axis that is computed")
        start, stop, step = (given.get(key) for key in _KEYS[1:])
        return axis if axis >= 0 else axis + self.rank_of(into), start or 0, stop, 1 if step is None else step

    def _name(self, node: fx.Node) -> str:
        """The row of a call; nothing for what has none."""
        row = self.resolve(node).row if node.op.startswith("call") else None
        return "" if row is None else row.name
