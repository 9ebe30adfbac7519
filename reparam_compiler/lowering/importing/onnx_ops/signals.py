"""Fourier transforms as products with their matrices."""

import numpy as np

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import instead_of

LARGEST = 4096
"""Rows of a transform's matrix."""


@instead_of("DFT", tvm="does not know it")
def fourier(graph: Graph, node: Node) -> str:
    """The matrix of the transform, times the axis; real and imaginary parts side by side in the last axis."""
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    given = int(graph.required(node, 2, "axis").item()) if node.input(2) else -2
    axis = given % len(shape)
    length = int(graph.required(node, 1, "dft_length").item()) if node.input(1) else shape[axis]
    if length > LARGEST:
        raise node.refusal(f"a transform of {length} elements", f"expected at most {LARGEST}")
    onesided, inverse = bool(node.attrs.get("onesided", 0)), bool(node.attrs.get("inverse", 0))
    if onesided and inverse:
        raise node.refusal("the inverse of one side has no rule")
    kept, rows = min(shape[axis], length), length // 2 + 1 if onesided else length
    angle = 2 * np.pi * np.outer(np.arange(rows), np.arange(kept)) / length
    factor = (np.exp(1j * angle) / length if inverse else np.exp(-1j * angle)).T
    parts = [np.real(factor), np.imag(factor)]
    x = graph.emit("Slice", x, graph.ints(0), graph.ints(kept), graph.ints(axis)) if kept < shape[axis] else x
    order = [other for other in range(len(shape)) if other != axis] + [axis]
    last = len(shape) - 2  # where the parts stand, once the axis is the last one
    moved = graph.emit("Transpose", x, perm=order)
    matrix = np.stack(parts, -1).reshape(kept, 2 * rows)
    if shape[-1] == 2:
        turned = np.stack([-parts[1], parts[0]], -1).reshape(kept, 2 * rows)
        real, imaginary = (graph.emit("Gather", moved, graph.constant(part, np.int64), axis=last) for part in (0, 1))
        made = graph.emit("MatMul", real, graph.constant(matrix, graph.dtype(x)))
        made = graph.emit("Add", made, graph.emit("MatMul", imaginary, graph.constant(turned, graph.dtype(x))))
    else:
        real = graph.emit("Squeeze", moved, graph.ints(last))
        made = graph.emit("MatMul", real, graph.constant(matrix, graph.dtype(x)))
    others = [shape[other] for other in order[:-2]]
    made = graph.emit("Reshape", made, graph.ints(*others, rows, 2))
    back = [*range(axis), len(others), *range(axis, len(others)), len(others) + 1]
    return graph.emit("Transpose", made, perm=back)


@instead_of("STFT", tvm="does not know it")
def short_time(graph: Graph, node: Node) -> str:
    """Windows of the signal, and the transform of each."""
    signal, shape = node.inputs[0], graph.shape(node.inputs[0])
    step = int(graph.required(node, 1, "frame_step").item())
    length = int(graph.required(node, 3, "frame_length").item()) if node.input(3) else graph.shape(node.inputs[2])[0]
    starts = np.arange(0, shape[1] - length + 1, step)
    frames = graph.emit("Gather", signal, graph.constant(starts[:, None] + np.arange(length)), axis=1)
    if len(shape) == 2:
        frames = graph.emit("Unsqueeze", frames, graph.ints(3))
    if node.input(2):
        frames = graph.emit("Mul", frames, graph.emit("Reshape", node.inputs[2], graph.ints(length, 1)))
    axis = graph.constant(2, np.int64)
    return graph.emit("DFT", frames, "", axis, onesided=node.attrs.get("onesided", 1))
