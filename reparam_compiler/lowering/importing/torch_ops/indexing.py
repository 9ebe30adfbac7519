"""Elements read by indices: several index tensors at once, windows of an axis, strides."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from tvm import relax, te, tirx

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead, own


def is_mask(index: fx.Node) -> bool:
    """Whether an index is of bools, which pick where they are set."""
    return index.meta["val"].dtype in (torch.bool, torch.uint8)


class Places:
    """What several indices at once pick of a tensor of `sizes`, as in numpy.

    The indices are broadcast to one shape, which stands where they stand side by side, else in front.
    """

    def __init__(self, call: Call, given: Sequence[fx.Node | None], sizes: Sequence[int]) -> None:
        self.indices = {axis: index for axis, index in enumerate(given) if index is not None}
        self.sizes, axes = list(sizes), list(self.indices)
        paired = np.broadcast_shapes(*(call.sizes_of(index) for index in self.indices.values()))
        self.rank = len(paired)
        self.front = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
        others = [size for axis, size in enumerate(sizes) if axis not in self.indices]
        self.shape = [*others[: self.front], *paired, *others[self.front :]]

    def read(self, at: Sequence[Any], indices: Sequence[Any]) -> list[Any]:
        """For each axis of the tensor the index that an element of the result reads. indices: as TE tensors, in order."""
        paired, others = at[self.front : self.front + self.rank], iter([*at[: self.front], *at[self.front + self.rank :]])
        found = {axis: _counted(index, paired, self.sizes[axis]) for index, axis in zip(indices, self.indices, strict=True)}
        return [found[axis] if axis in found else next(others) for axis in range(len(self.sizes))]

    def flat(self, call: Call) -> Any:
        """Where each element of the result stands in the flattened tensor, as int64."""

        def compute(*indices: Any) -> Any:
            def place(*at: Any) -> Any:
                found = [index.astype("int64") for index in self.read(at, indices)]
                return functools.reduce(
                    lambda flat, axis: flat * self.sizes[axis] + found[axis], range(1, len(found)), found[0]
                )

            return te.compute(self.shape, place)

        return call.loops(compute, *(call.value(index) for index in self.indices.values()))


@instead("index.Tensor", tvm="pairs indices of some axes as if they stood in a grid, and fails where their shapes differ")
def _index(call: Call) -> Any:
    placed = {axis: index for axis, index in enumerate(call["indices"]) if index is not None}
    if any(is_mask(index) for index in placed.values()):
        raise call.refusal(
            "a mask, which gives as many elements as it has ones", "keep the size fixed: torch.where, masked_fill or indices"
        )
    if len(placed) == 1:
        ((axis, index),) = placed.items()
        return relax.op.take(call.tensor("input"), call.value(index), axis)
    places = Places(call, call["indices"], call.sizes("input"))
    return call.loops(
        lambda data, *indices: te.compute(places.shape, lambda *at: data(*places.read(at, indices))),
        call.tensor("input"),
        *(call.value(index) for index in placed.values()),
    )


def _counted(index: Any, at: Sequence[Any], size: int) -> Any:
    """An index of a broadcast tensor; one below zero counts from the end."""
    found = index(*own(index, at))
    return tirx.Select(found < 0, found + size, found)


@instead("unfold.default", tvm="does not know it")
def _windows(call: Call) -> Any:
    sizes, width, step = call.sizes("input"), call["size"], call["step"]
    axis = call["dimension"] % len(sizes)
    where = np.arange(0, sizes[axis] - width + 1, step)[:, None] + np.arange(width)
    found = call.emit(relax.op.take(call.tensor("input"), relax.const(where, "int64"), axis))
    rest = [place for place in range(len(sizes) + 1) if place != axis + 1]
    return relax.op.permute_dims(found, [*rest, axis + 1])


@instead("as_strided.default", tvm="takes it for a reshape")
def _strided(call: Call) -> Any:
    source = call["input"].meta["val"]
    if not source.is_contiguous():
        raise call.refusal("strides over a tensor that is moved in memory", "read it by indices, or call contiguous() before")
    shape, offset = call.shape, call["storage_offset"] or 0
    where = np.full(shape, offset)
    for axis, (size, stride) in enumerate(zip(shape, call["stride"], strict=True)):
        where = where + np.arange(size).reshape([-1 if axis == place else 1 for place in range(len(shape))]) * stride
    flat = call.emit(relax.op.reshape(call.tensor("input"), [source.numel()]))
    return relax.op.take(flat, relax.const(where.astype("int64"), "int64"), 0)


@instead("take.default", tvm="reads indices below zero before the tensor")
def _take(call: Call) -> Any:
    flat = call.emit(relax.op.reshape(call.tensor("input"), [int(np.prod(call.sizes("input")))]))
    return relax.op.take(flat, call.tensor("index"), 0)


@instead("cat.default", tvm="refuses tensors of different dtypes")
def _joined(call: Call) -> Any:
    parts = [call.value(part, call.dtype) for part in call["tensors"] if part.meta["val"].shape != (0,)]
    return relax.op.concat(parts, call["dim"] or 0)
