"""Calls that state a width, each written back in its own spelling: what pruning changes goes into the arguments that it has.

One op of the graph has many spellings: a Slice is `y[:, :8]`, `y.narrow(1, 0, 8)` or `aten.slice(y, 1, 0, 8)`. Each spelling is
a row of the vocabulary and has a writer, which is found by what the call is, not by what it is named. Arguments stay positional
or by keyword, as the model has them. A call without a writer is refused, never written as another.

    y.narrow(dim=1, start=8, length=8)      becomes      y.narrow(dim=1, start=4, length=4)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from reparam_compiler.core.kernel import Ints
from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.arguments import argument, set_argument
from reparam_compiler.interpreter.size_expressions import number_values, stale_numbers
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node
from reparam_compiler.vocabulary.resolve import ROWS, resolve_function, resolve_method
from reparam_compiler.vocabulary.row import Row

_END = 2**63 - 1
"""The end of a slice that reads to the end, as aten writes it."""
aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class ComputedSizes:
    """The sizes that a model computes (`x.shape[1] // 2`), after a cut.

    values: each by its node. stale: those that come out otherwise than before.
    """

    values: Mapping[str, Any]
    stale: frozenset[str]

    @staticmethod
    def after_cut(before: Graph, after: Graph) -> "ComputedSizes":
        """The sizes that the first graph computes, where its values have the shapes of the second one."""
        typed = [(node.id, node.type) for node in after if node.type is not None and node.id in before.nodes]
        shapes = {node_id: known.shape for node_id, known in typed if before[node_id].type != known}
        if not shapes:
            return ComputedSizes({}, frozenset())
        return ComputedSizes(number_values(before, shapes), stale_numbers(before, shapes))

    def gives(self, size: fx.Node, was: int, wanted: int) -> bool:
        """Whether a computed size comes out as wanted, where it was another one before; 0 and -1 want what it was."""
        if size.name not in self.stale:
            return wanted <= 0 or wanted == was
        value = self.values[size.name]
        return wanted > 0 and isinstance(value, int) and value == wanted

    def gives_shape(self, shape: fx.Node, wanted: Ints) -> bool:
        """Whether a whole shape (`y.size()`) comes out as wanted."""
        value = self.values.get(shape.name)
        if not isinstance(value, tuple) or len(value) != len(wanted):
            return False
        return all(want <= 0 or size == want for size, want in zip(value, wanted, strict=True))


@dataclass(frozen=True, slots=True)
class ChangedCall:
    """A call whose op states other widths than before.

    fx_node: the call, which a writer changes. before, after: its op, or the coupling model of it. node: as it is now.
    """

    fx_node: fx.Node
    before: ops.Op
    after: Any
    node: Node
    sizes: ComputedSizes

    def argument(self, place: int, *names: str) -> Any:
        """The argument at a place, or of one of these names; None where it is left out."""
        return argument(self.fx_node, place, *names)

    def set(self, place: int, *names: str, value: Any) -> None:
        """Exchanges that argument."""
        set_argument(self.fx_node, place, *names, value=value)

    def retarget(self, method: str, function: Any, overload: Any, *args: Any) -> None:
        """Makes it another call, of the same kind as it was: a method, a function of torch's or an aten overload."""
        if self.fx_node.op == "call_method":
            self.fx_node.target = method
        else:
            self.fx_node.target = overload if is_aten(self.fx_node.target) else function
        self.fx_node.args, self.fx_node.kwargs = (self.source, *args), {}

    @property
    def source(self) -> fx.Node:
        """What it is called on."""
        source: fx.Node = self.argument(0, "input")
        return source


Writer = Callable[[ChangedCall], None]
WRITERS: dict[Row, Writer] = {}
"""For each row of the vocabulary, as torch's functions, methods and aten ops spell it, its writer."""


def writes(*names: str) -> Callable[[Writer], Writer]:
    """Registers the writer of these rows; raises ValueError for one that has a writer, KeyError for a name that is no row's."""

    def register(writer: Writer) -> Writer:
        for name in names:
            if ROWS[name] in WRITERS:
                raise ValueError(f"{name} has a writer already")
            WRITERS[ROWS[name]] = writer
        return writer

    return register


def row_of(fx_node: fx.Node) -> Row | None:
    """The row of a call of a function, a method or an aten op; None for what is none of torch's."""
    target: Any = fx_node.target
    return (resolve_method(target) if fx_node.op == "call_method" else resolve_function(target)).row


def is_aten(target: Any) -> bool:
    """Whether a call is of an operator of a torch library, not of a function or method of Python's."""
    return isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket)


def update_call(fx_node: fx.Node, before: Node, node: Node, sizes: ComputedSizes) -> None:
    """Writes the widths that a node states now into the arguments of its call: groups, shapes, piece sizes, slice bounds.

    Raises:
        RewriteError: the call has no writer, or its spelling cannot say what the node states.
    """
    was, now = ops.understood(before.op), ops.understood(node.op)
    told_in_numbers = before.op != node.op and now.states_sizes and not isinstance(node.op, ops.Opaque)
    if was == now and not told_in_numbers:
        return
    row = row_of(fx_node)
    writer = WRITERS.get(row) if row is not None else None
    if writer is None or type(was) is not type(now):
        raise RewriteError(f"{node.id}: a change from {was} to {now} cannot be written into a call of {fx_node.target}")
    writer(ChangedCall(fx_node, was, now, node, sizes))


@writes("narrow")
def _narrow(call: ChangedCall) -> None:
    cut: ops.Slice = call.after
    stop = cut.stop
    if stop is None:
        if call.node.type is None or not isinstance(width := call.node.type.shape[cut.axis], int):
            raise RewriteError(f"{call.node.id}: the length of a narrow to the end is not known")
        stop = cut.start + width
    call.set(2, "start", value=cut.start)
    call.set(3, "length", value=stop - cut.start)


@writes("slice")
def _slice(call: ChangedCall) -> None:
    cut: ops.Slice = call.after
    if (call.argument(2, "start") or 0) != cut.start:
        call.set(2, "start", value=cut.start)
    stop = call.argument(3, "end")
    if cut.stop is None and stop is not None:
        call.set(3, "end", value=_END)
    elif stop != cut.stop:
        call.set(3, "end", value=cut.stop)


@writes("getitem")
def _getitem(call: ChangedCall) -> None:
    """The one slice of the index that does not go from end to end; the rest of the index stays."""
    cut: ops.Slice = call.after
    index = call.argument(1, "index")
    parts = list(index) if isinstance(index, tuple) else [index]
    place = next(
        place
        for place, part in enumerate(parts)
        if isinstance(part, slice) and (part.start or 0, part.stop, part.step or 1) != (0, None, 1)
    )
    start = None if cut.start == 0 and parts[place].start is None else cut.start
    parts[place] = slice(start, cut.stop, parts[place].step)
    call.set(1, "index", value=tuple(parts) if isinstance(index, tuple) else parts[0])


@writes("split")
def _split(call: ChangedCall) -> None:
    """By one size where all pieces but the last are of one size, else by a list of sizes."""
    pieces: Ints = call.after.sizes
    names = ("split_size", "split_size_or_sections")
    if isinstance(call.argument(1, *names), int):
        if all(size == pieces[0] for size in pieces[:-1]) and 0 < pieces[-1] <= pieces[0]:
            call.set(1, *names, value=pieces[0])
        elif is_aten(call.fx_node.target):
            call.retarget("split", torch.split, aten.split_with_sizes.default, list(pieces), call.after.axis)
        else:
            call.set(1, *names, value=list(pieces))
    else:
        call.set(1, *names, value=list(pieces))


@writes("split_with_sizes")
def _split_with_sizes(call: ChangedCall) -> None:
    call.set(1, "split_sizes", value=list(call.after.sizes))


@writes("chunk")
def _chunk(call: ChangedCall) -> None:
    """A number of chunks says the new pieces as well, where these are of one size; other pieces are split by their sizes."""
    pieces: Ints = call.after.sizes
    count = call.argument(1, "chunks")
    size = -(-sum(pieces) // count)
    if list(pieces) != [min(size, sum(pieces) - at) for at in range(0, sum(pieces), size)]:
        call.retarget("split", torch.split, aten.split_with_sizes.default, list(pieces), call.after.axis)


@writes("flatten", "squeeze")
def _without_sizes(call: ChangedCall) -> None:
    """States axes alone: the sizes come out right by themselves."""


@writes("view", "_unsafe_view")
def _view(call: ChangedCall) -> None:
    if isinstance(call.argument(1, "dtype"), torch.dtype):
        raise RewriteError(f"{call.node.id}: a view as another dtype states no shape")
    _set_sizes(call, "size")


@writes("reshape")
def _reshape(call: ChangedCall) -> None:
    _set_sizes(call, "shape")


@writes("expand", "broadcast_to")
def _expand(call: ChangedCall) -> None:
    _set_sizes(call, "size")


@writes("view_as", "reshape_as")
def _reshape_as(call: ChangedCall) -> None:
    """Follows the other value, or, where that has another shape now, becomes a reshape."""
    if not isinstance(call.node.op, ops.Opaque):
        call.retarget("reshape", torch.reshape, aten.reshape.default, _in_numbers(call))


@writes("expand_as")
def _expand_as(call: ChangedCall) -> None:
    """The same for an expansion."""
    if not isinstance(call.node.op, ops.Opaque):
        call.retarget("expand", torch.broadcast_to, aten.expand.default, _in_numbers(call))


@writes("unflatten")
def _unflatten(call: ChangedCall) -> None:
    was, now = _shapes(call)
    given = call.argument(2, "sizes")
    if not isinstance(given, list | tuple):
        raise RewriteError(f"{call.node.id}: the sizes of an unflatten are computed")
    axis = call.argument(1, "dim")
    axis += 0 if axis >= 0 else len(now) - len(given) + 1
    part = slice(axis, axis + len(given))
    call.set(2, "sizes", value=_like(given, _sizes(call, given, was[part], now[part])))


@writes("group_norm")
def _group_norm(call: ChangedCall) -> None:
    call.set(1, "num_groups", value=call.after.groups)


@writes("layer_norm", "rms_norm", "native_layer_norm")
def _layer_norm(call: ChangedCall) -> None:
    given, was = call.argument(1, "normalized_shape"), call.before
    now: Ints = call.after.shape
    if isinstance(given, fx.Node) and call.sizes.gives_shape(given, now):
        return
    if isinstance(given, list | tuple) and isinstance(was, ops.LayerNorm) and len(given) == len(now):
        call.set(1, "normalized_shape", value=_like(given, _sizes(call, given, was.shape, now)))
    else:
        call.set(1, "normalized_shape", value=list(now))


@writes(*(f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)))
def _conv(call: ChangedCall) -> None:
    call.set(6, "groups", value=call.after.groups)


@writes("convolution")
def _convolution(call: ChangedCall) -> None:
    call.set(8, "groups", value=call.after.groups)


@writes("scaled_dot_product_attention")
def _attention(call: ChangedCall) -> None:
    """The scale of the width before the cut, which the call may have left to its default; it is given by keyword alone."""
    call.fx_node.kwargs = {**call.fx_node.kwargs, "scale": call.after.scale}


def _shapes(call: ChangedCall) -> tuple[Ints, Ints]:
    was, now = call.before, call.after
    if not isinstance(was, ops.Reshape | ops.Expand) or not isinstance(now, ops.Reshape | ops.Expand):
        raise RewriteError(f"{call.node.id}: {now} states no shape")
    return was.shape, now.shape


def _set_sizes(call: ChangedCall, name: str) -> None:
    """The sizes after the first argument, which stand in a list, one after the other, or in a value (`x.view(y.size())`)."""
    was, now = _shapes(call)
    rest = call.fx_node.args[1:]
    given = rest[0] if len(rest) == 1 else rest or call.fx_node.kwargs[name]
    if isinstance(given, fx.Node) and call.sizes.gives_shape(given, now):
        return
    one_by_one = len(rest) > 1 or (len(rest) == 1 and len(now) == 1 and not isinstance(given, list | tuple))
    listed = given if isinstance(given, list | tuple) else (given,)
    sizes = _sizes(call, listed, was, now) if len(listed) == len(now) else _in_numbers(call)
    if one_by_one and not isinstance(rest[0], list | tuple):
        call.fx_node.args = (call.fx_node.args[0], *sizes)
    else:
        call.set(1, name, value=_like(given, sizes))


def _sizes(call: ChangedCall, given: Sequence[Any], was: Ints, now: Ints) -> list[Any]:
    """The sizes that a call states, with numbers in place of those that come out otherwise; -1 stays what is left."""
    sizes: list[Any] = []
    for size, old, new in zip(given, was, now, strict=True):
        stays = call.sizes.gives(size, old, new) if isinstance(size, fx.Node) else size == -1 or old == new
        sizes.append(size if stays else new)
    return _closed(call, sizes, now)


def _in_numbers(call: ChangedCall) -> list[Any]:
    """The sizes of the new shape; -1 for one that is open."""
    return _closed(call, [-1 if size == 0 else size for size in call.after.shape], call.after.shape)


def _closed(call: ChangedCall, sizes: list[Any], now: Ints) -> list[Any]:
    """Sizes of which one may be -1 where they are those of a reshape; raises RewriteError where several must."""
    if not isinstance(call.after, ops.Reshape):
        return sizes
    sizes = [-1 if isinstance(size, int) and size == 0 else size for size in sizes]
    if sizes.count(-1) > 1:
        inferred = [isinstance(size, int) and size == -1 for size in sizes]
        sizes = [new if left and new > 0 else size for size, new, left in zip(sizes, now, inferred, strict=True)]
    if sizes.count(-1) > 1:
        raise RewriteError(f"{call.node.id}: a reshape to {sizes}, of which several are open, cannot be written back to torch")
    return sizes


def _like(given: Any, sizes: list[Any]) -> Any:
    """The sizes as a tuple where they were one."""
    return tuple(sizes) if isinstance(given, tuple) else sizes
