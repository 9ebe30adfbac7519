"""Convs, products and pools."""

import math
from typing import Any

import numpy as np

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Ints, Node
from reparam_compiler.lowering.importing.onnx_ops.table import MICROSOFT, instead_of

ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Clip", "Elu", "Softplus", "Softsign", "ThresholdedRelu")


@instead_of("ConvTranspose", tvm="leaves output_shape out")
def transposed_conv(graph: Graph, node: Node) -> str | None:
    """The pads that give the output its size."""
    attrs, auto = node.attrs, node.attrs.pop("auto_pad", "NOTSET")
    size, kernel = graph.shape(node.inputs[0])[2:], graph.shape(node.inputs[1])[2:]
    axes = range(len(size))
    ones, zeros = [1] * len(size), [0] * len(size)
    wanted = attrs.pop("output_shape", None)
    strides, dilations = attrs.get("strides", ones), attrs.get("dilations", ones)
    more = attrs.get("output_padding", zeros)
    reach = [(kernel[axis] - 1) * dilations[axis] + 1 for axis in axes]
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size[axis] * strides[axis] for axis in axes]
    if wanted is None:
        return None
    wanted = wanted[-len(size) :]
    total = [strides[axis] * (size[axis] - 1) + more[axis] + reach[axis] - wanted[axis] for axis in axes]
    attrs["output_padding"] = [more[axis] - min(0, total[axis]) for axis in axes]
    total = [max(0, pad) for pad in total]
    if any(extra >= stride for extra, stride in zip(attrs["output_padding"], strides, strict=True)):
        raise node.refusal(f"an output_shape of {tuple(wanted)} is beyond what its strides reach", "expected a smaller one")
    first = [pad // 2 if auto == "SAME_UPPER" else pad - pad // 2 for pad in total]
    attrs["pads"] = [*first, *(pad - begin for pad, begin in zip(total, first, strict=True))]
    return graph.keep(node)[0]


@instead_of("Col2Im", tvm="does not know it")
def image_of_columns(graph: Graph, node: Node) -> str:
    """A ConvTranspose whose kernel puts each element of a block where it belongs."""
    image = [int(size) for size in graph.required(node, 1, "image_shape")]
    block = [int(size) for size in graph.required(node, 2, "block_shape")]
    ones = [1] * len(block)
    strides, dilations = node.attrs.get("strides", ones), node.attrs.get("dilations", ones)
    pads = node.attrs.get("pads", [0] * 2 * len(block))
    batch, rows, _ = graph.shape(node.inputs[0])
    elements = math.prod(block)
    channels = rows // elements
    padded = [size + pads[axis] + pads[axis + len(block)] for axis, size in enumerate(image)]
    reach = [(size - 1) * dilations[axis] + 1 for axis, size in enumerate(block)]
    counts = [(padded[axis] - reach[axis]) // strides[axis] + 1 for axis in range(len(block))]
    left = [padded[axis] - ((counts[axis] - 1) * strides[axis] + reach[axis]) for axis in range(len(block))]
    kernel = np.tile(np.eye(elements).reshape(elements, 1, *block), (channels, *[1] * (1 + len(block))))
    blocks = graph.emit("Reshape", node.inputs[0], graph.ints(batch, rows, *counts))
    whole = graph.emit(
        "ConvTranspose",
        blocks,
        graph.constant(kernel, graph.dtype(blocks)),
        group=channels,
        strides=strides,
        dilations=dilations,
        output_padding=left,
    )
    begin = pads[: len(block)]
    ends = [first + size for first, size in zip(begin, image, strict=True)]
    return graph.emit("Slice", whole, graph.ints(*begin), graph.ints(*ends), graph.ints(*range(2, 2 + len(block))))


@instead_of("FusedConv", domain=MICROSOFT, tvm="does not know it")
def fused_conv(graph: Graph, node: Node) -> str:
    """A Conv, a sum and an activation."""
    activation, params = _taken(node, "activation"), node.attrs.pop("activation_params", [])
    made = graph.emit("Conv", *node.inputs[:3], **node.attrs)
    if node.input(3):
        made = graph.emit("Add", made, node.inputs[3])
    return activated(graph, node, made, activation, params)


@instead_of("FusedGemm", domain=MICROSOFT, tvm="does not know it")
def fused_gemm(graph: Graph, node: Node) -> str:
    """A Gemm and an activation."""
    activation = _taken(node, "activation")
    params = [node.attrs.pop(f"activation_{name}") for name in ("alpha", "beta") if f"activation_{name}" in node.attrs]
    return activated(graph, node, graph.emit("Gemm", *node.inputs, **node.attrs), activation, params)


def _taken(node: Node, name: str) -> str:
    return str(node.attrs.pop(name, ""))


def activated(graph: Graph, node: Node, x: str, activation: str, params: list[float]) -> str:
    """An activation by its name in ONNX; raises LoweringError for one without a rule."""
    if not activation:
        return x
    if activation == "Clip":
        return graph.emit("Clip", x, *(graph.like(bound, x) for bound in params))
    if activation not in ACTIVATIONS:
        raise node.refusal(f"the activation {activation} has no rule")
    return graph.emit(activation, x, **dict(zip(("alpha", "beta"), params, strict=False)))


@instead_of("FusedMatMul", domain=MICROSOFT, tvm="does not know it")
def fused_product(graph: Graph, node: Node) -> str:
    """Transposes, a MatMul and a factor."""
    if node.attrs.get("transBatchA", 0) or node.attrs.get("transBatchB", 0):
        raise node.refusal("transposed batches have no rule")
    sides = []
    for name, side in zip(node.inputs, ("A", "B"), strict=True):
        order = [*range(graph.rank(name))]
        order[-2:] = reversed(order[-2:])
        sides.append(graph.emit("Transpose", name, perm=order) if node.attrs.get(f"trans{side}", 0) else name)
    made = graph.emit("MatMul", *sides)
    alpha = node.attrs.get("alpha", 1.0)
    return made if alpha == 1 else graph.emit("Mul", made, graph.like(alpha, made))


@instead_of("MaxPool", tvm="makes too few windows for SAME_LOWER, and gives no indices")
def max_pool(graph: Graph, node: Node) -> list[str]:
    """Explicit pads, of which those at the end make the size that ceil_mode asks for; indices by comparing the windows."""
    pads = _ended(*explicit_pads(graph, node))
    if node.outputs == 2:
        return _with_indices(graph, node, pads)
    return graph.keep(Node("MaxPool", [node.inputs[0]], {**_window(node), "pads": pads}, 1, node.name))


@instead_of("LpPool", tvm="takes the windows that ceil_mode cuts short for whole ones")
def lp_pool(graph: Graph, node: Node) -> str:
    """The mean of the powers times the size of each window."""
    (pads, beyond), attrs, p = explicit_pads(graph, node), _window(node), float(node.attrs.get("p", 2))
    half = len(pads) // 2
    x = _raised(graph, graph.emit("Abs", node.inputs[0]), p)
    if any(pads):
        x = graph.emit("Pad", x, graph.ints(0, 0, *pads[:half], 0, 0, *pads[half:]))
    mean = graph.emit("AveragePool", x, **attrs, pads=[*[0] * half, *beyond])
    return _raised(
        graph, graph.emit("Mul", mean, graph.constant(_sizes_of_windows(graph, x, attrs, mean), graph.dtype(x))), 1 / p
    )


def _window(node: Node) -> dict[str, Any]:
    return {key: node.attrs[key] for key in ("kernel_shape", "strides", "dilations") if key in node.attrs}


def _raised(graph: Graph, x: str, power: float) -> str:
    if power == 0.5:
        return graph.emit("Sqrt", x)
    return x if power == 1 else graph.emit("Pow", x, graph.like(power, x))


def _ended(pads: list[int], beyond: Ints) -> list[int]:
    """The pads, with what ceil_mode adds at the ends."""
    half = len(pads) // 2
    return [*pads[:half], *(pad + more for pad, more in zip(pads[half:], beyond, strict=True))]


def explicit_pads(graph: Graph, node: Node) -> tuple[list[int], Ints]:
    """The pads of a pool, and what is needed beyond them at the ends for the last window that ceil_mode counts."""
    size, kernel = graph.shape(node.inputs[0])[2:], node.attrs["kernel_shape"]
    ones = [1] * len(size)
    strides, dilations = node.attrs.get("strides", ones), node.attrs.get("dilations", ones)
    auto, pads = node.attrs.get("auto_pad", "NOTSET"), list(node.attrs.get("pads", [0] * 2 * len(size)))
    reach = [(length - 1) * dilation + 1 for length, dilation in zip(kernel, dilations, strict=True)]
    if auto == "VALID":
        pads = [0] * len(pads)
    elif auto != "NOTSET":
        total = [
            max(0, (-(-length // strides[axis]) - 1) * strides[axis] + reach[axis] - length) for axis, length in enumerate(size)
        ]
        first = [pad // 2 if auto == "SAME_UPPER" else pad - pad // 2 for pad in total]
        pads = [*first, *(pad - begin for pad, begin in zip(total, first, strict=True))]
    if not node.attrs.get("ceil_mode", 0):
        return pads, (0,) * len(size)
    beyond = []
    for axis, length in enumerate(size):
        begin, end = pads[axis], pads[axis + len(size)]
        windows = -(-(begin + length + end - reach[axis]) // strides[axis]) + 1
        windows -= (windows - 1) * strides[axis] >= length + begin
        beyond.append(max(0, (windows - 1) * strides[axis] + reach[axis] - (begin + length + end)))
    return pads, tuple(beyond)


def _sizes_of_windows(graph: Graph, x: str, attrs: dict[str, Any], made: str) -> np.ndarray:
    """How many elements of the padded input each window holds."""
    size, out = graph.shape(x)[2:], graph.shape(made)[2:]
    ones, counts = [1] * len(size), np.ones((1, 1))
    for axis, length in enumerate(size):
        starts = np.arange(out[axis]) * attrs.get("strides", ones)[axis]
        places = starts[:, None] + np.arange(attrs["kernel_shape"][axis]) * attrs.get("dilations", ones)[axis]
        counts = counts[..., None] * (places < length).sum(1)
    return counts


def _with_indices(graph: Graph, node: Node, pads: list[int]) -> list[str]:
    """Each window as an axis: the largest of it, and where that lies in the whole input."""
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    size, kernel = shape[2:], node.attrs["kernel_shape"]
    ones, half = [1] * len(size), len(size)
    strides, dilations = node.attrs.get("strides", ones), node.attrs.get("dilations", ones)
    order = range(half) if not node.attrs.get("storage_order", 0) else reversed(range(half))
    steps, step = [0] * half, 1
    for axis in reversed(list(order)):
        steps[axis], step = step, step * size[axis]
    index, place, inside = np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, bool)
    windows = []
    for axis in range(half):
        count = (size[axis] + pads[axis] + pads[axis + half] - (kernel[axis] - 1) * dilations[axis] - 1) // strides[axis] + 1
        windows.append(count)
        at = np.arange(count)[:, None] * strides[axis] + np.arange(kernel[axis]) * dilations[axis] - pads[axis]
        along = at.reshape(*[1] * axis, count, *[1] * (half - 1), kernel[axis], *[1] * (half - axis - 1))
        held = np.clip(along, 0, size[axis] - 1)
        inside = inside & (along == held)
        index, place = index * size[axis] + held, place + held * steps[axis]
    total, elements = math.prod(windows), math.prod(kernel)
    flat = graph.emit("Reshape", x, graph.ints(*shape[:2], math.prod(size)))
    taken = graph.emit("Gather", flat, graph.constant(index.reshape(total, elements)), axis=2)
    known = np.broadcast_to(inside, index.shape).reshape(total, elements)
    least = np.iinfo(graph.dtype(x)).min if graph.dtype(x).kind in "iu" else -np.inf
    taken = graph.emit("Where", graph.constant(known), taken, graph.like(least, x))
    best = graph.emit("ArgMax", taken, axis=3, keepdims=1)
    rows = graph.constant(np.arange(total).reshape(1, 1, total, 1) * elements)
    where = graph.emit("Gather", graph.constant(place.reshape(-1)), graph.emit("Add", best, rows), axis=0)
    offsets = np.arange(math.prod(shape[:2])).reshape(*shape[:2], 1, 1) * math.prod(size)
    shaped = graph.ints(*shape[:2], *windows)
    largest = graph.emit("ReduceMax", taken, graph.ints(3), keepdims=0)
    return [
        graph.emit("Reshape", largest, shaped),
        graph.emit("Reshape", graph.emit("Add", where, graph.constant(offsets)), shaped),
    ]


@instead_of("MaxUnpool", tvm="takes its output_shape for a list")
def unpool(graph: Graph, node: Node) -> str:
    """Zeros of the output's size, with the elements put where the indices say."""
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    kernel, half = node.attrs["kernel_shape"], len(shape) - 2
    strides, pads = node.attrs.get("strides", [1] * half), node.attrs.get("pads", [0] * 2 * half)
    own = [(shape[axis + 2] - 1) * strides[axis] + kernel[axis] - pads[axis] - pads[axis + half] for axis in range(half)]
    size = [*shape[:2], *own]
    if node.input(2) and [int(length) for length in graph.required(node, 2, "output_shape")] != size:
        raise node.refusal(f"an output_shape that is not {tuple(size)}: ONNX and ONNX Runtime read its indices in two ways")
    zeros = graph.constant(np.zeros(math.prod(size)), graph.dtype(x))
    flat = [graph.emit("Reshape", name, graph.ints(-1)) for name in (node.inputs[1], x)]
    return graph.emit("Reshape", graph.emit("ScatterElements", zeros, *flat, axis=0), graph.ints(*size))


@instead_of("DeformConv", tvm="does not know it")
def deformed_conv(graph: Graph, node: Node) -> str:
    """The input sampled where each tap of each output says, and a product with the weights."""
    x, weight, attrs = node.inputs[0], node.inputs[1], node.attrs
    batch, channels, high, wide = graph.shape(x)
    out, _, *kernel = graph.shape(weight)
    if attrs.get("group", 1) != 1 or attrs.get("offset_group", 1) != 1 or min(high, wide) < 2:
        raise node.refusal(
            "groups of channels or offsets, or one row or column", "expected one group, and two rows and columns"
        )
    rows, columns = graph.shape(node.inputs[2])[2:]
    strides, dilations = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
    pads, taps = attrs.get("pads", [0] * 4), math.prod(kernel)
    down = np.arange(kernel[0])[:, None] * dilations[0] + np.arange(rows) * strides[0] - pads[0]
    across = np.arange(kernel[1])[:, None] * dilations[1] + np.arange(columns) * strides[1] - pads[1]
    both = np.broadcast_arrays(down[:, None, :, None], across[None, :, None, :])
    base = np.stack(both, 2).reshape(1, taps, 2, rows, columns)
    offsets = graph.emit("Reshape", node.inputs[2], graph.ints(batch, taps, 2, rows, columns))
    places = graph.emit("Add", offsets, graph.constant(base, graph.dtype(x)))
    size = np.asarray([high - 1, wide - 1]).reshape(1, 1, 2, 1, 1) / 2
    unit = graph.emit("Sub", graph.emit("Div", places, graph.constant(size, graph.dtype(x))), graph.like(1, x))
    grid = graph.emit("Gather", graph.emit("Transpose", unit, perm=[0, 1, 3, 4, 2]), graph.ints(1, 0), axis=4)
    grid = graph.emit("Reshape", grid, graph.ints(batch, taps * rows, columns, 2))
    taken = graph.emit("GridSample", x, grid, mode="linear", padding_mode="zeros", align_corners=1)
    taken = graph.emit("Reshape", taken, graph.ints(batch, channels, taps, rows, columns))
    if node.input(4):
        taken = graph.emit("Mul", taken, graph.emit("Unsqueeze", node.inputs[4], graph.ints(1)))
    flat = graph.emit("Reshape", taken, graph.ints(batch, channels * taps, rows * columns))
    made = graph.emit("MatMul", graph.emit("Reshape", weight, graph.ints(out, -1)), flat)
    made = graph.emit("Reshape", made, graph.ints(batch, out, rows, columns))
    return graph.emit("Add", made, graph.emit("Reshape", node.inputs[3], graph.ints(out, 1, 1))) if node.input(3) else made
