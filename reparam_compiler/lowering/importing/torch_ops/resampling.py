"""Interpolation of every mode, rank, ratio and factor, and pooling to a given size: weighted sums along one axis at a time.

    out[…, i, …] = sum_k weight[i, k] in[…, where[i, k], …]            where, weight: tables of `out x taps`, made here

The tables follow torch's own arithmetic (float32, `aten/src/ATen/native/UpSample.h`). Where TVM's resize2d computes the same,
it stays: nearest at whole ratios, bilinear between pictures of given sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead

COPIED = frozenset({"linear", "linear_aa", "cubic_aa"})
"""What torch does not resample along an axis that keeps its size, whatever the factor; nor the nearest of pictures alone."""
UNROLLED = 4
"""Taps up to which their sum is one expression."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What each element along an axis is made of. where: indices `out x taps`; weight: of each, or None for a sole 1."""

    where: Any
    weight: Any = None


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an interpolation. factor: that of its scale, where the caller gave one."""

    before: int
    after: int
    corners: bool
    factor: float | None

    @property
    def scale(self) -> np.float32:
        """Steps of the source for a step of the result."""
        if self.corners:
            return np.float32(self.before - 1) / np.float32(self.after - 1) if self.after > 1 else np.float32(0)
        if self.factor is not None and self.factor > 0:
            return np.float32(1.0 / self.factor)
        return np.float32(self.before) / np.float32(self.after)

    def centres(self) -> Any:
        """Where each element of the result lies in the source, in float32."""
        steps = np.arange(self.after, dtype=np.float32)
        return self.scale * steps if self.corners else self.scale * (steps + np.float32(0.5)) - np.float32(0.5)


def nearest(axis: Axis) -> Table:
    """The element at or before."""
    found = np.floor(np.arange(axis.after, dtype=np.float32) * axis.scale)
    return Table(np.minimum(found, axis.before - 1).astype(np.int64)[:, None])


def nearest_exact(axis: Axis) -> Table:
    """The element whose centre is nearest."""
    found = np.floor((np.arange(axis.after, dtype=np.float32) + np.float32(0.5)) * axis.scale)
    return Table(np.minimum(found, axis.before - 1).astype(np.int64)[:, None])


def linear(axis: Axis) -> Table:
    """The two elements beside."""
    centre = np.maximum(axis.centres(), np.float32(0))
    low = np.minimum(np.floor(centre).astype(np.int64), axis.before - 1)
    high = np.minimum(low + 1, axis.before - 1)
    share = np.clip(centre - low.astype(np.float32), 0, 1)
    return Table(np.stack([low, high], 1), np.stack([1 - share, share], 1))


def _cubic(distance: Any, a: float) -> Any:
    d = np.abs(distance)
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d < 1, near, np.where(d < 2, far, 0))


def cubic(axis: Axis) -> Table:
    """Four elements; the border is repeated."""
    centre = axis.centres()
    low = np.floor(centre)
    taps = np.arange(-1, 3)
    where = np.clip(low.astype(np.int64)[:, None] + taps, 0, axis.before - 1)
    return Table(where, _cubic((centre - low)[:, None].astype(np.float64) - taps, -0.75))


def _smoothed(kernel: Callable[[Any], Any], reach: float) -> Callable[[Axis], Table]:
    """The kernel, widened to the step where that is above one, of the elements that there are."""

    def table(axis: Axis) -> Table:
        scale = float(axis.scale)
        wide = max(scale, 1.0)
        rows = []
        for index in range(axis.after):
            centre = scale * (index + 0.5)
            first = max(int(centre - reach * wide + 0.5), 0)
            last = min(int(centre + reach * wide + 0.5), axis.before)
            weights = kernel((np.arange(first, last) - centre + 0.5) / wide)
            rows.append((first, weights / weights.sum()))
        return _ragged(rows, axis.before)

    return table


def average(axis: Axis) -> Table:
    """The mean of the elements that an element of the result covers, whole or in part."""
    rows = []
    for index in range(axis.after):
        first, last = index * axis.before // axis.after, -(-(index + 1) * axis.before // axis.after)
        rows.append((first, np.full(last - first, 1 / (last - first))))
    return _ragged(rows, axis.before)


def _ragged(rows: Sequence[tuple[int, Any]], before: int) -> Table:
    taps = max(len(weights) for _, weights in rows)
    where = np.stack([np.minimum(first + np.arange(taps), before - 1) for first, _ in rows])
    return Table(where, np.stack([np.pad(weights, (0, taps - len(weights))) for _, weights in rows]))


TABLES: dict[str, Callable[[Axis], Table]] = {
    "nearest": nearest,
    "nearest_exact": nearest_exact,
    "linear": linear,
    "cubic": cubic,
    "linear_aa": _smoothed(lambda x: np.maximum(0, 1 - np.abs(x)), 1.0),
    "cubic_aa": _smoothed(lambda x: _cubic(x, -0.5), 2.0),
    "average": average,
}


def resampled(call: Call, data: Any, axis: int, table: Table) -> Any:
    """A tensor, resampled along an axis. Half precision is summed in float32."""
    taps = table.where.shape[1]
    dtype = str(data.ty.dtype)
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype

    def compute(data: Any, where: Any, *weight: Any) -> Any:
        sizes = [*data.shape[:axis], table.where.shape[0], *data.shape[axis + 1 :]]

        def tap(at: Sequence[Any], k: Any) -> Any:
            read = data[(*at[:axis], where[at[axis], k], *at[axis + 1 :])]
            return read.astype(wide) * weight[0][at[axis], k] if weight else read

        if taps <= UNROLLED:
            return te.compute(sizes, lambda *at: sum((tap(at, k) for k in range(1, taps)), tap(at, 0)).astype(dtype))
        k = te.reduce_axis((0, taps), "k")
        summed = te.compute(sizes, lambda *at: te.sum(tap(at, k), axis=[k]))
        return summed if wide == dtype else te.compute(sizes, lambda *at: summed[at].astype(dtype))

    weights = [] if table.weight is None else [relax.const(table.weight.astype(wide), wide)]
    return call.loops(compute, data, relax.const(table.where.astype("int32"), "int32"), *weights)


def _interpolated(call: Call, kind: str) -> Any:
    """All axes behind the channels, those that shrink most first."""
    before, after = call.sizes("input")[2:], call.shape[2:]
    axes = [
        Axis(small, large, bool(call["align_corners"]), factor)
        for small, large, factor in zip(before, after, factors(call), strict=True)
    ]
    found, copied = call.tensor("input"), kind in COPIED or (kind, len(axes)) == ("nearest", 2)
    for place in sorted(range(len(axes)), key=lambda place: after[place] / before[place]):
        axis = axes[place]
        if axis.before != axis.after or not (copied or axis.corners or axis.scale == 1):
            found = resampled(call, found, place + 2, TABLES[kind](axis))
    return found


def factors(call: Call) -> list[float | None]:
    """The factors of scale that the caller gave, for each axis; None where sizes decide."""
    rank = len(call.results[0].shape) - 2
    if call["scale_factors"] is not None:
        return list(call["scale_factors"])
    names = ["scales_d", "scales_h", "scales_w"][3 - rank :]
    return [call["scales"]] if rank == 1 else [call[name] for name in names]


def _by_tables(kind: str) -> Callable[[Call], Any]:
    return lambda call: _interpolated(call, kind)


UNKNOWN = "does not know it"
for _rank in (1, 2, 3):
    for _form in ("vec", "default"):
        if _rank != 2:
            instead(f"upsample_nearest{_rank}d.{_form}", tvm=UNKNOWN)(_by_tables("nearest"))
        instead(f"_upsample_nearest_exact{_rank}d.{_form}", tvm=UNKNOWN)(_by_tables("nearest_exact"))
for _form in ("vec", "default"):
    for _name in ("upsample_linear1d", "upsample_trilinear3d"):
        instead(f"{_name}.{_form}", tvm=UNKNOWN)(_by_tables("linear"))
    instead(f"upsample_bicubic2d.{_form}", tvm="has another spline (-0.5), and leaves factors out")(_by_tables("cubic"))
    instead(f"_upsample_bilinear2d_aa.{_form}", tvm="leaves the smoothing out")(_by_tables("linear_aa"))
    instead(f"_upsample_bicubic2d_aa.{_form}", tvm=UNKNOWN)(_by_tables("cubic_aa"))


@instead("upsample_nearest2d.vec", "upsample_nearest2d.default", tvm="takes another pixel where a ratio is not whole")
def _nearest_picture(call: Call) -> Any:
    before, after = call.sizes("input")[2:], call.shape[2:]
    whole = all(large % small == 0 for small, large in zip(before, after, strict=True))
    plain = all(
        factor is None or factor == large / small for small, large, factor in zip(before, after, factors(call), strict=True)
    )
    if not (whole and plain and call.dtype == "float32"):
        return _interpolated(call, "nearest")
    return _resized(call, "nearest_neighbor")


@instead("upsample_bilinear2d.vec", "upsample_bilinear2d.default", tvm="leaves factors out")
def _linear_picture(call: Call) -> Any:
    before, after = call.sizes("input")[2:], call.shape[2:]
    plain = call["align_corners"] or all(
        factor is None or factor == large / small for small, large, factor in zip(before, after, factors(call), strict=True)
    )
    if not plain or (call["align_corners"] and 1 in after) or call.dtype != "float32":
        return _interpolated(call, "linear")
    return _resized(call, "linear")


def _resized(call: Call, method: str) -> Any:
    """In TVM's own op, which its layout pass knows."""
    coordinates = "align_corners" if call["align_corners"] else "half_pixel"
    size = tuple(call.shape[2:])
    return relax.op.image.resize2d(
        call.tensor("input"), size, layout="NCHW", method=method, coordinate_transformation_mode=coordinates
    )
