"""Layers: convs of every rank, norms without weights or in double precision, distances, products of three."""

import math
from typing import Any

import numpy as np
from tvm import relax

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead

LAYOUTS = {1: ("NCW", "OIW", "IOW"), 2: ("NCHW", "OIHW", "IOHW"), 3: ("NCDHW", "OIDHW", "IODHW")}
"""Of the data, of the kernel of a conv, of a transposed one."""
UNKNOWN = "does not know it"


@instead("convolution.default", tvm="refuses transposed ones of rank 3")
def _conv(call: Call) -> Any:
    rank = len(call.results[0].shape) - 2
    data, kernel, transposed_kernel = LAYOUTS[rank]
    settings = {"strides": call["stride"], "padding": call["padding"], "dilation": call["dilation"], "groups": call["groups"]}
    if call["transposed"]:
        op = getattr(relax.op.nn, f"conv{rank}d_transpose")
        settings |= {"output_padding": call["output_padding"], "kernel_layout": transposed_kernel}
    else:
        op, settings = getattr(relax.op.nn, f"conv{rank}d"), settings | {"kernel_layout": kernel}
    found = call.emit(op(call.tensor("input"), call.tensor("weight"), data_layout=data, **settings))
    if call["bias"] is None:
        return found
    return relax.op.add(found, relax.op.reshape(call.tensor("bias"), (1, -1, *[1] * rank)))


def _weights(call: Call, shape: list[int]) -> tuple[Any, Any]:
    """Scale and shift of a norm; ones and zeros where it has none."""
    ones, zeros = (relax.const(make(shape, call.dtype), call.dtype) for make in (np.ones, np.zeros))
    scale = ones if call["weight"] is None else call.tensor("weight")
    return scale, zeros if call["bias"] is None else call.tensor("bias")


@instead("native_group_norm.default", tvm="fails where there are no weights")
def _group_norm(call: Call) -> Any:
    rank = len(call.results[0].shape)
    scale, shift = _weights(call, [call["C"]])
    settings = {"num_groups": call["group"], "channel_axis": 1, "axes": list(range(2, rank)), "epsilon": call["eps"]}
    found = call.emit(relax.op.nn.group_norm(call.tensor("input"), scale, shift, **settings))
    return relax.Tuple([found] * 3)


@instead("_trilinear.default", tvm=UNKNOWN)
def _products_of_three(call: Call) -> Any:
    found = call.emit(relax.op.expand_dims(call.tensor("i1"), call["expand1"]))
    for factor, axes in (("i2", "expand2"), ("i3", "expand3")):
        wide = relax.op.expand_dims(call.tensor(factor), call[axes]) if call[axes] else call.tensor(factor)
        found = call.emit(relax.op.multiply(found, wide))
    return relax.op.sum(found, call["sumdim"])


@instead("_cdist_forward.default", tvm=UNKNOWN)
def _distances(call: Call) -> Any:
    order = float(call["p"])
    apart = relax.op.subtract(relax.op.expand_dims(call.tensor("x1"), -2), relax.op.expand_dims(call.tensor("x2"), -3))
    size = call.emit(relax.op.abs(apart))
    if math.isinf(order):
        return relax.op.max(size, -1)
    if order == 0:
        return relax.op.sum(relax.op.astype(relax.op.not_equal(size, relax.const(0, call.dtype)), call.dtype), -1)
    if order in (1, 2):
        return relax.op.sum(size, -1) if order == 1 else relax.op.sqrt(relax.op.sum(relax.op.multiply(size, size), -1))
    total = relax.op.sum(relax.op.power(size, relax.const(order, call.dtype)), -1)
    return relax.op.power(total, relax.const(1 / order, call.dtype))


@instead("roi_align.default", tvm="takes half a pixel off the boxes before their scale, not behind it")
def _regions(call: Call) -> Any:
    """`torchvision.ops.roi_align`; the boxes are `number, x1, y1, x2, y2`."""
    boxes, dtype = call.tensor("rois"), call.given_dtype("rois")
    if call["aligned"]:
        half = np.array([0, *[0.5 / call["spatial_scale"]] * 4]).astype(dtype)
        boxes = call.emit(relax.op.subtract(boxes, relax.const(half, dtype)))
    return relax.op.vision.roi_align(
        call.tensor("input"),
        boxes,
        pooled_size=(call["pooled_height"], call["pooled_width"]),
        spatial_scale=call["spatial_scale"],
        sample_ratio=call["sampling_ratio"],
        aligned=bool(call["aligned"]),
        layout="NCHW",
        mode="avg",
    )
