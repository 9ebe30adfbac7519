"""ONNX ops that slide a window: convs and pools, their padding resolved where it is exact.

SAME padding    out = ceil(size / s),  total = max((out - 1) s + d (k - 1) + 1 - size, 0)     needs the size, unless s = 1
transposed      out = s (size - 1) + d (k - 1) + 1 + output_padding - total;   SAME: out = size s, so total needs no size
"""

from collections.abc import Sequence

from reparam_compiler.core.kernel import Ints, Pairs
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.call import Call, Read, Unsupported
from reparam_compiler.frontends.onnx.ops.registry import reads
from reparam_compiler.frontends.onnx.tensors import FARTHEST, RUN_CHECKER, called
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Param


@reads("Conv")
def conv(call: Call) -> Read:
    """Conv with a constant kernel."""
    weight, bias = call.param(1, "weight"), call.param(2, "bias") if call.has(2) else None
    stride, padding, dilation = _geometry(call, weight.shape[2:])
    groups = call.attribute("group", 1)
    _check_channels(call, weight, groups, weight.shape[1] * groups, weight.shape[0], bias)
    return ops.Conv(stride, padding, dilation, groups), (call.x, weight, bias)


@reads("ConvTranspose")
def conv_transpose(call: Call) -> Read:
    """ConvTranspose with a constant kernel, whose padding cuts the full output."""
    weight, bias = call.param(1, "weight"), call.param(2, "bias") if call.has(2) else None
    size, rank = weight.shape[2:], len(weight.shape) - 2
    if not 1 <= rank <= 3:
        raise Unsupported(f"ConvTranspose over {rank} axes")
    groups = call.attribute("group", 1)
    _check_channels(call, weight, groups, weight.shape[0], weight.shape[1] * groups, bias)
    stride, dilation = (_numbers(call, key, rank, 1) for key in ("strides", "dilations"))
    extra = _numbers(call, "output_padding", rank, 0)
    full = [d * (k - 1) + 1 + more for d, k, more in zip(dilation, size, extra, strict=True)]
    auto_pad, wanted = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape", None)
    if wanted is not None:
        totals = [
            _whole(call, axis, s, n) - w for axis, (s, n, w) in enumerate(zip(stride, full, wanted, strict=True), start=2)
        ]
    elif auto_pad == "VALID":
        totals = [0] * rank
    elif auto_pad != "NOTSET":
        totals = [n - s for s, n in zip(stride, full, strict=True)]
    else:
        pads = _numbers(call, "pads", 2 * rank, 0)
        return _transposed(call, (stride, tuple(zip(pads[:rank], pads[rank:], strict=True)), extra, dilation), weight, bias)
    if min(totals) < 0:
        raise Unsupported("an output that is larger than what the kernel reaches")
    smaller = [(total // 2, total - total // 2) for total in totals]
    padding = tuple(smaller if auto_pad == "SAME_UPPER" else [(high, low) for low, high in smaller])
    return _transposed(call, (stride, padding, extra, dilation), weight, bias)


def _check_channels(call: Call, weight: Param, groups: int, into: int, out: int, bias: Param | None) -> None:
    """Raises UnsupportedModelError where the weights of a conv are not for its groups, its input or its bias."""
    known = call.type(0)
    divided = groups > 0 and into % groups == 0 and out % groups == 0
    channels = known.shape[1] if known is not None and len(known.shape) == len(weight.shape) else into
    fits = not isinstance(channels, int) or channels == into
    if not divided or not fits or (bias is not None and bias.shape != (out,)):
        raise UnsupportedModelError(
            f"{called(call.node)}: found weights {list(weight.shape)} for {groups} groups, on an input of "
            f"{'unknown shape' if known is None else list(known.shape)}"
            f"{'' if bias is None else f' with a bias of {list(bias.shape)}'}, which do not go together: {RUN_CHECKER}"
        )


def _transposed(call: Call, geometry: tuple[Ints, Pairs, Ints, Ints], weight: Param, bias: Param | None) -> Read:
    return ops.ConvTranspose(*geometry, call.attribute("group", 1)), (call.x, weight, bias)


def _whole(call: Call, axis: int, stride: int, extent: int) -> int:
    """The size of the full output of a transposed window along an axis."""
    size = call.shape[axis]
    if not isinstance(size, int):
        raise Unsupported("an output shape beside a size that is not known")
    return stride * (size - 1) + extent


@reads("AveragePool")
def avg_pool(call: Call) -> Read:
    """AveragePool without dilation."""
    size = _numbers(call, "kernel_shape", len(call.attribute("kernel_shape", ())), 1)
    stride, padding, dilation = _geometry(call, size)
    include = bool(call.attribute("count_include_pad", 0))
    if any(d != 1 for d in dilation):
        raise Unsupported("a dilated average pool")
    if not any(map(any, padding)):
        include = True  # there is nothing to count
    elif not include and any(low != high for low, high in padding):
        raise Unsupported("an average over unequal padding that is not counted")
    ceil_mode = _ceil_mode(call, size, stride, padding, dilation)
    if ceil_mode and include and any(map(any, padding)):
        raise Unsupported("an average over a window that hangs over counted padding")
    return ops.AvgPool(size, stride, padding, ceil_mode, include), (call.x,)


@reads("MaxPool")
def max_pool(call: Call) -> Read:
    """MaxPool of floats, without indices."""
    call.floating()
    size = _numbers(call, "kernel_shape", len(call.attribute("kernel_shape", ())), 1)
    stride, padding, dilation = _geometry(call, size)
    ceil_mode = _ceil_mode(call, size, stride, padding, dilation)
    return ops.MaxPool(size, stride, padding, dilation, ceil_mode), (call.x,)


@reads("GlobalAveragePool")
def global_average(call: Call) -> Read:
    """The mean over all positions."""
    return ops.AdaptiveAvgPool((1,) * (call.rank - 2)), (call.x,)


@reads("GlobalMaxPool")
def global_max(call: Call) -> Read:
    """The largest of all positions."""
    return ops.Reduce("max", tuple(range(2, call.rank)), True), (call.x,)


def _geometry(call: Call, size: Sequence[int]) -> tuple[Ints, Pairs, Ints]:
    """Stride, padding and dilation for a window of this size."""
    rank = len(size)
    if not 1 <= rank <= 3:
        raise Unsupported(f"{call.node.op_type} over {rank} axes")
    stride, dilation = (_numbers(call, key, rank, 1) for key in ("strides", "dilations"))
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True))
    auto_pad = call.attribute("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        pads = _numbers(call, "pads", 2 * rank, 0)
        padding = tuple(zip(pads[:rank], pads[rank:], strict=True))
    elif auto_pad == "VALID":
        padding = ((0, 0),) * rank
    else:
        totals = [_same(call, axis + 2, s, n) for axis, (s, n) in enumerate(zip(stride, extent, strict=True))]
        smaller = [(total // 2, total - total // 2) for total in totals]
        padding = tuple(smaller if auto_pad == "SAME_UPPER" else [(high, low) for low, high in smaller])
    if call.node.op_type != "Conv" and any(low == high and 2 * low > k for (low, high), k in zip(padding, size, strict=True)):
        raise Unsupported("a pool that pads more than half its window")
    return stride, padding, dilation


def _numbers(call: Call, key: str, count: int, default: int) -> Ints:
    """An attribute of so many numbers; steps are from 1 on. Raises Unsupported for one beyond `FARTHEST`."""
    found = tuple(call.attribute(key, (default,) * count))
    if len(found) != count or (default and min(found, default=1) < 1):
        steps = " from 1 on" if default else ""
        raise UnsupportedModelError(
            f"{called(call.node)}: found {key} {list(found)}; expected {count} numbers{steps}: {RUN_CHECKER}"
        )
    if any(abs(number) > FARTHEST for number in found):
        raise Unsupported(f"{call.node.op_type} whose {key} are beyond {FARTHEST}")
    return found


def _same(call: Call, axis: int, stride: int, extent: int) -> int:
    if stride == 1:
        return extent - 1
    size = call.shape[axis]
    if not isinstance(size, int):
        raise Unsupported("padding that depends on a size that is not known")
    return max((-(-size // stride) - 1) * stride + extent - size, 0)


def _ceil_mode(call: Call, size: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> bool:
    """True where windows may hang over the end; raises Unsupported where runtimes do not agree on whether the last one counts.

    They do not agree on a window that starts in the upper padding, or beyond it.
    """
    if not call.attribute("ceil_mode", 0):
        return False
    hangs_over = False
    for axis, (k, s, (low, high), d) in enumerate(zip(size, stride, padding, dilation, strict=True)):
        whole = call.shape[axis + 2]
        if not isinstance(whole, int):
            raise Unsupported("ceil_mode on sizes that are not known")
        room = whole + low + high - d * (k - 1) - 1
        hangs_over |= room % s != 0
        if -(-room // s) * s >= whole + low or low != high:
            raise Unsupported("ceil_mode with a last window that starts in the padding")
    return hangs_over
