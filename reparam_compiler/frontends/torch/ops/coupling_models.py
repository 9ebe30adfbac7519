"""What pruning sees in calls that stay opaque to every other pass: a coupling model, for the sizes of the trace.

A size that the model computes (`x.shape[1] // heads`) stands here as the number that it is. What is read of further values is
their sizes and dtypes alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from reparam_compiler.frontends import coupling
from reparam_compiler.frontends.torch.call import Call, Read, Unsupported
from reparam_compiler.frontends.torch.ops.windows import WINDOWS
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Operand, TensorType
from reparam_compiler.vocabulary.resolve import ROWS, by_row_name
from reparam_compiler.vocabulary.row import Form, Row

CouplingModel = Callable[[Call, TensorType | None], Read]
"""Gives the op and its operands from a call and the type of what it gives, or raises Unsupported."""


def _tensors(call: Call) -> tuple[Operand, ...]:
    """The tensors among the arguments, in order; numbers stay with the call."""
    given: list[Any] = []
    for argument in (*call.args, *call.kwargs.values()):
        given += argument if isinstance(argument, list | tuple) else [argument]
    return tuple(call.operand_of(argument, "const") for argument in given if isinstance(argument, fx.Node))


def _elementwise(call: Call, result: TensorType | None) -> Read:
    return coupling.elementwise(coupling.shape_of(result)), _tensors(call)


def _of_first(call: Call, result: TensorType | None) -> Read:
    return coupling.elementwise(coupling.shape_of(result)), (call.x,)


def _but(index: int, key: str, default: Any, call: Call, result: TensorType | None) -> Read:
    """A function of whole lines along some axes."""
    given = call.constant(index, key, default)
    if given is None or given == ():
        raise Unsupported(f"{call.name} along no axis that is said")
    lines = {call.axis(axis) for axis in (given if isinstance(given, list | tuple) else (given,))}
    return ops.Slicewise(tuple(axis for axis in range(call.rank) if axis not in lines)), (call.x,)


def _of_matrices(call: Call, result: TensorType | None) -> Read:
    return ops.Slicewise(tuple(range(call.rank - 2))), (call.x,)


def _spread(call: Call, result: TensorType | None) -> Read:
    """Variance over axes that stay, of size 1."""
    if len(coupling.shape_of(result)) != call.rank:
        raise Unsupported(f"{call.name} that drops axes")
    return _but(1, "dim", None, call, result)


def _resampled(axes: int | None, call: Call, result: TensorType | None) -> Read:
    """A pool or a resize along the axes behind batch and channels: so many, or any number of them."""
    if call.rank < 3 if axes is None else call.rank != axes + 2:
        raise Unsupported(f"{call.name} without batch and channels")
    return ops.Slicewise((0, 1)), (call.x,)


def _flip(call: Call, result: TensorType | None) -> Read:
    """Along axes in a list, or one after the other: `y.flip(2, 3)`."""
    lines = {call.axis(axis) for axis in call.sizes(1, "dims")}
    return ops.Slicewise(tuple(axis for axis in range(call.rank) if axis not in lines)), (call.x,)


def _rearranged(call: Call, result: TensorType | None) -> Read:
    return ops.Rearrange(), (call.x,)


def _squeeze(call: Call, result: TensorType | None) -> Read:
    """An axis that may go must keep its size: cut to one channel it would vanish."""
    axes = call.sizes(1, "dim") if len(call.args) > 1 or "dim" in call.kwargs else range(call.rank)
    return ops.Rearrange(tuple(call.axis(axis) for axis in axes)), (call.x,)


def _repeat_interleave(call: Call, result: TensorType | None) -> Read:
    """By one number for all; with a number each, or where the size of the result is stated, the axis must keep its size."""
    if isinstance(call.raw(1, "repeats"), int) and call.kwargs.get("output_size") is None:
        return ops.Rearrange(), (call.x,)
    axis = call.constant(2, "dim", None)
    if axis is None:
        raise Unsupported("repeats of all elements in one line")
    return ops.Rearrange((call.axis(axis),)), (call.x,)


def _by_number(index: int, key: str, call: Call, result: TensorType | None) -> Read:
    return ops.Rearrange((call.axis(call.constant(index, key, 0)),)), (call.x,)


def _getitem(call: Call, result: TensorType | None) -> Read:
    """An index of numbers and slices; an axis that it does not take whole is one by number."""
    index = call.raw(1, "index")
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(not (part is None or part is Ellipsis or isinstance(part, int | slice)) for part in parts):
        raise Unsupported("an index that is computed")
    if call.type_of(call.first) is None:
        raise Unsupported("an index of what may be several tensors")
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    axis, by_number = 0, []
    for part in parts:
        if part is Ellipsis:
            axis += call.rank - taken
        elif part is not None:
            by_number += [] if part == slice(None) else [axis]
            axis += 1
    return ops.Rearrange(tuple(by_number)), (call.x,)


def _index(call: Call, result: TensorType | None) -> Read:
    """`x[:, table]` with constant tables."""
    tables = call.raw(1, "indices")
    places = [axis for axis, table in enumerate(tables) if table is not None]
    if any(isinstance(call.operand_of(tables[axis], "const"), str) for axis in places):
        raise Unsupported("an index that is computed")
    return ops.Rearrange(tuple(places)), (call.x,)


def _index_select(call: Call, result: TensorType | None) -> Read:
    if isinstance(call.operand(2, "index"), str):
        raise Unsupported("an index that is computed")
    return _by_number(1, "dim", call, result)


def _channel_shuffle(call: Call, result: TensorType | None) -> Read:
    return ops.ChannelShuffle(call.constant(1, "groups")), (call.x,)


def _reshape(call: Call, result: TensorType | None) -> Read:
    if any(isinstance(argument, torch.dtype) for argument in (*call.args, *call.kwargs.values())):
        raise Unsupported("a view of the bits as another dtype")
    return coupling.reshape(call.shape, coupling.shape_of(result)), (call.x,)


def _expand(call: Call, result: TensorType | None) -> Read:
    x, known = call.operand_of(call.first, "const"), call.type_of(call.first)
    own = x.shape if known is None and not isinstance(x, str | None) else call.shape
    op = coupling.expand(own, coupling.shape_of(result))
    if call.name != "expand_as":
        return op, (x,)
    other = call.operand(1, "other")
    if not isinstance(other, str):
        raise Unsupported("an expansion to the shape of a constant, which stays")
    return op, (x, other)


def _reduce(function: ops.Reduction, place: int, call: Call, result: TensorType | None) -> Read:
    given = call.constant(place, "dim", None)
    axes = range(call.rank) if given in (None, [], ()) else given if isinstance(given, list | tuple) else (given,)
    if call.kwargs.get("dtype") is not None:
        raise Unsupported(f"{function} in another dtype")
    keepdim = bool(call.constant(place + 1, "keepdim", False))
    return ops.Reduce(function, tuple(sorted(call.axis(axis) for axis in axes)), keepdim), (call.x,)


def _norm(key: str, call: Call, result: TensorType | None) -> Read:
    if call.constant(1, key, 2) not in (2, 2.0, "fro", None):
        raise Unsupported("a norm that is not Euclidean")
    return _reduce("norm", 2, call, result)


def _matmul(call: Call, result: TensorType | None) -> Read:
    a, b = call.raw(0, "input"), call.raw(1, "other" if call.name == "matmul" else "mat2")
    return coupling.matmul(_rank(call, a), _rank(call, b)), (call.operand_of(a, "const"), call.operand_of(b, "const"))


def _rank(call: Call, value: Any) -> int:
    operand = call.operand_of(value, "const")
    known = call.type_of(value)
    if isinstance(operand, str | None) and known is None:
        raise Unsupported(f"{call.name}: the shape is not known")
    return len(known.shape) if known is not None else len(operand.shape)  # type: ignore[union-attr]


def _einsum(call: Call, result: TensorType | None) -> Read:
    equation, given = call.raw(0, "equation"), call.sizes(1, "tensors")
    values = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    if len(values) != 2:
        raise Unsupported(f"einsum of {len(values)} values")
    return coupling.einsum(str(equation)), tuple(call.operand_of(value, "const") for value in values)


def _attention(call: Call, result: TensorType | None) -> Read:
    """The scale is that of the width before anything is cut."""
    q, k, v = (call.operand(index, key) for index, key in enumerate(("query", "key", "value")))
    bias = call.operand(3, "attn_mask", None)
    if call.constant(4, "dropout_p", 0.0) or call.constant(7, "enable_gqa", False):
        raise Unsupported("attention with dropout, or with fewer keys than heads")
    query = call.type_of(call.raw(0, "query"))
    width, scale = query and query.shape[-1], call.constant(6, "scale", None)
    if not isinstance(width, int) or not isinstance(q, str):
        raise Unsupported("attention of an unknown width")
    causal = bool(call.constant(5, "is_causal", False))
    return ops.Attention(width**-0.5 if scale is None else float(scale), width, causal), (q, k, v, bias)


def _layer_norm(call: Call, result: TensorType | None) -> Read:
    shape = call.constant(1, "normalized_shape")
    shape = tuple(shape) if isinstance(shape, list | tuple) else (shape,)
    weight, bias = call.operand(2, "weight", None), call.operand(3, "bias", None)
    return ops.LayerNorm(shape, float(call.constant(4, "eps", 1e-5))), (call.x, weight, bias)


def _rms_norm(call: Call, result: TensorType | None) -> Read:
    eps = call.constant(3, "eps", None)
    if eps is None:
        raise Unsupported("an eps that depends on the dtype")
    shape = tuple(call.constant(1, "normalized_shape"))
    return ops.LayerNorm(shape, float(eps), centred=False), (call.x, call.operand(2, "weight", None), None)


def _group_norm(call: Call, result: TensorType | None) -> Read:
    weight, bias = call.operand(2, "weight", None), call.operand(3, "bias", None)
    return ops.GroupNorm(call.constant(1, "num_groups"), float(call.constant(4, "eps", 1e-5))), (call.x, weight, bias)


def _instance_norm(order: tuple[int, int, int, int], call: Call, result: TensorType | None) -> Read:
    """order: where weight, bias, and the running mean and variance stand; torch and aten differ."""
    keys = ("weight", "bias", "running_mean", "running_var")
    weight, bias, *running = (call.operand(i, key, None) for i, key in zip(order, keys, strict=True))
    if not call.constant(5, "use_input_stats", True) or any(statistic is not None for statistic in running):
        raise Unsupported("instance norm with running statistics")
    return ops.GroupNorm(None, float(call.constant(7, "eps", 1e-5))), (call.x, weight, bias)


def _functional_instance_norm(call: Call, result: TensorType | None) -> Read:
    if call.rank == call.constant(8, "rank without batch", None):
        raise Unsupported("instance norm without batch axis")
    return _instance_norm((3, 4, 1, 2), call, result)


def _embedding(call: Call, result: TensorType | None) -> Read:
    """torch.embedding and aten have the weight first."""
    return ops.Embedding(), (call.operand(1, "indices"), call.operand(0, "weight"))


def _functional_embedding(call: Call, result: TensorType | None) -> Read:
    """F.embedding has the indices first."""
    if call.constant(3, "max_norm", None) is not None:
        raise Unsupported("an embedding that scales its rows by their norms, which are those of all channels")
    return ops.Embedding(), (call.operand(0, "input"), call.operand(1, "weight"))


def _glu(call: Call, result: TensorType | None) -> Read:
    return ops.Glu(call.axis(call.constant(1, "dim", -1))), (call.x,)


def _prelu(call: Call, result: TensorType | None) -> Read:
    return ops.PerChannel(), (call.x, call.param(1, "weight", "weight"))


def _pad(call: Call, result: TensorType | None) -> Read:
    """By amounts that the model computes."""
    return WINDOWS["pad"](call)


def _same_for(names: str, coupling_model: CouplingModel) -> dict[str, CouplingModel]:
    return dict.fromkeys(names.split(), coupling_model)


_FORMS: dict[Form, CouplingModel] = {
    "pointwise": _elementwise,
    "elementwise": _elementwise,
    "move": _rearranged,
    "rearranged": _rearranged,
    "recast": _of_first,
}
_COUPLING_MODELS: dict[str, CouplingModel] = {
    **_same_for("softmax _softmax log_softmax _log_softmax softmin cumsum cumprod", partial(_but, 1, "dim", None)),
    "flip": _flip,
    "squeeze": _squeeze,
    "repeat_interleave": _repeat_interleave,
    "roll": partial(_but, 2, "dims", None),
    "normalize": partial(_but, 2, "dim", 1),
    **_same_for("var std", _spread),
    **_same_for("tril triu", _of_matrices),
    **_same_for("unbind select", partial(_by_number, 1, "dim")),
    "getitem": _getitem,
    "index": _index,
    "index_select": _index_select,
    "channel_shuffle": _channel_shuffle,
    "pad": _pad,
    **_same_for("view reshape _unsafe_view view_as reshape_as unflatten flatten", _reshape),
    **_same_for("expand expand_as broadcast_to", _expand),
    "mean": partial(_reduce, "mean", 1),
    "sum": partial(_reduce, "sum", 1),
    "amax": partial(_reduce, "max", 1),
    "amin": partial(_reduce, "min", 1),
    "linalg_vector_norm": partial(_norm, "ord"),
    "norm": partial(_norm, "p"),
    **_same_for("matmul bmm mm", _matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": partial(_instance_norm, (1, 2, 3, 4)),
    "functional.instance_norm": _functional_instance_norm,
    "embedding": _embedding,
    "functional.embedding": _functional_embedding,
    "glu": _glu,
    "prelu": _prelu,
}
COUPLING_MODELS: dict[Row, CouplingModel] = {
    **{row: _FORMS[row.form] for row in ROWS.values() if row.form in _FORMS},
    **{row: partial(_resampled, row.axes) for row in ROWS.values() if row.form == "resampled"},
    **by_row_name(_COUPLING_MODELS),
}
"""For each row its coupling model. One with a form needs none of its own."""


def operand_places(nodes: Sequence[Operand], operands: Sequence[Operand]) -> tuple[tuple[Operand, ...], tuple[int, ...]]:
    """The inputs of an opaque node, the operands of its coupling model first; and where what it is run on stands there."""
    inputs = list(operands)
    for operand in nodes:
        if not any(operand is known or (isinstance(operand, str) and operand == known) for known in inputs):
            inputs.append(operand)
    places = [
        next(i for i, known in enumerate(inputs) if known is operand or (isinstance(known, str) and known == operand))
        for operand in nodes
    ]
    return tuple(inputs), tuple(places)


def expanded(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """x expanded; where it is longer than 1 it keeps its own size, whatever is said of it."""
    new = len(sizes) - x.ndim
    return x.expand([-1 if axis >= new and x.shape[axis - new] > 1 else size for axis, size in enumerate(sizes)])
