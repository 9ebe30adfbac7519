"""One-op ONNX models: convs, pools, norms, recurrent layers, attention, what samples an image."""

from collections.abc import Iterator

import numpy as np

from benchmarks.op_models import OneOp
from benchmarks.op_one_onnx import MICROSOFT, Constant, between, held, normal, one, scalar, weights


def cases() -> Iterator[OneOp]:
    yield from convs()
    yield from transposed()
    yield from pools()
    yield from norms()
    yield from resized()
    yield from sampled()
    yield from recurrent()
    yield from attention()
    yield from signals()


def convs() -> Iterator[OneOp]:
    x, w = normal(1, 4, 9, 8), weights(6, 4, 3, 3)
    yield one("Conv", x, w, weights(6), pads=[1, 1, 1, 1])
    yield one("Conv", x, w, pads=[2, 0, 1, 3], strides=[2, 1], dilations=[1, 2], note="uneven")
    yield one("Conv", x, w, auto_pad="SAME_UPPER", strides=[2, 2], note="same upper")
    yield one("Conv", x, w, auto_pad="SAME_LOWER", strides=[2, 2], opset=9)
    yield one("Conv", x, w, auto_pad="VALID", note="valid")
    yield one("Conv", x, weights(8, 1, 3, 3), group=4, note="depthwise by two")
    yield one("Conv", x, weights(6, 2, 3, 3), group=2, note="grouped")
    yield one("Conv", normal(2, 4, 11), weights(6, 4, 3), weights(6), strides=[2], pads=[1, 0], note="1-D")
    yield one("Conv", normal(2, 4, 11), weights(6, 4, 4), auto_pad="SAME_UPPER", note="1-D, same")
    yield one("Conv", normal(1, 2, 5, 6, 7), weights(3, 2, 3, 3, 3), weights(3), pads=[1] * 6, note="3-D")
    yield one("Conv", normal(1, 2, 5, 6, 7), weights(4, 1, 2, 3, 2), group=2, strides=[1, 2, 2], note="3-D, grouped")
    yield one("Conv", x, normal(6, 4, 3, 3, seed=2), note="weights computed")
    yield one("FusedConv", x, w, weights(6), domain=MICROSOFT, activation="Relu", pads=[1, 1, 1, 1])
    yield one("FusedConv", x, w, weights(6), normal(1, 6, 7, 6), domain=MICROSOFT, activation="Relu", note="with a sum")
    yield one("FusedConv", x, w, domain=MICROSOFT, activation="LeakyRelu", activation_params=[0.1], note="leaky")
    yield one("FusedConv", x, w, domain=MICROSOFT, activation="Clip", activation_params=[0.0, 6.0], note="clip")
    for strides, pads in (([1, 1], [0] * 4), ([2, 1], [1, 0, 1, 2])):
        block = normal(1, 3 * 6, _windows(8, 7, strides, pads))
        yield one("Col2Im", block, held(8, 7), held(2, 3), strides=strides, pads=pads, note=f"strides {strides}")
    offsets = between(-1, 1, 1, 18, 7, 6)
    yield one("DeformConv", x, w, offsets, opset=19)
    gates = between(0, 1, 1, 9, 9, 8)
    more = between(-2, 2, 1, 18, 9, 8)
    yield one("DeformConv", x, w, more, weights(6), gates, opset=22, pads=[1, 1, 1, 1], note="mask")


def _windows(high: int, wide: int, strides: list[int], pads: list[int]) -> int:
    """How many 2x3 windows an image has."""
    return ((high + pads[0] + pads[2] - 2) // strides[0] + 1) * ((wide + pads[1] + pads[3] - 3) // strides[1] + 1)


def transposed() -> Iterator[OneOp]:
    x, w = normal(1, 4, 5, 6), weights(4, 3, 3, 3)
    yield one("ConvTranspose", x, w, weights(3))
    yield one("ConvTranspose", x, w, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1], note="doubled")
    yield one("ConvTranspose", x, weights(4, 3, 2, 2), strides=[2, 2], note="2x2")
    yield one("ConvTranspose", x, w, strides=[2, 2], output_shape=[10, 12], note="output_shape")
    yield one("ConvTranspose", x, w, strides=[3, 2], output_shape=[16, 12], auto_pad="SAME_LOWER", note="output_shape, lower")
    yield one("ConvTranspose", x, w, strides=[2, 2], auto_pad="SAME_UPPER", note="same upper")
    yield one("ConvTranspose", x, w, strides=[2, 2], auto_pad="SAME_LOWER", opset=1)
    yield one("ConvTranspose", x, w, dilations=[2, 2], strides=[2, 1], pads=[1, 0, 2, 1], note="dilated")
    yield one("ConvTranspose", x, weights(4, 2, 3, 3), weights(4), group=2, strides=[2, 2], note="grouped")
    yield one("ConvTranspose", x, weights(4, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1], note="depthwise")
    yield one("ConvTranspose", x, weights(4, 3, 1, 1), strides=[2, 2], note="1x1, stride 2")
    yield one("ConvTranspose", normal(2, 4, 7), weights(4, 3, 4), weights(3), strides=[2], pads=[1, 1], note="1-D")
    yield one("ConvTranspose", normal(1, 2, 3, 4, 5), weights(2, 3, 2, 3, 2), strides=[2, 2, 2], note="3-D")


def pools() -> Iterator[OneOp]:
    x = normal(1, 3, 9, 8)
    for op in ("MaxPool", "AveragePool"):
        yield one(op, x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        yield one(op, x, kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1, note="ceil")
        yield one(op, x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 2], ceil_mode=1, note="ceil, pads")
        yield one(op, x, kernel_shape=[2, 2], strides=[3, 3], pads=[0, 0, 0, 1], ceil_mode=1, note="ceil, into the padding")
        yield one(op, x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", note="same upper")
        yield one(op, x, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER", opset=10)
        yield one(op, x, kernel_shape=[2, 2], auto_pad="VALID", note="valid")
        yield one(op, x, kernel_shape=[2, 3], dilations=[2, 2], opset=19, note="dilated")
        yield one(op, normal(1, 3, 11), kernel_shape=[3], strides=[2], pads=[1, 1], note="1-D")
        yield one(op, normal(1, 2, 5, 6, 7), kernel_shape=[2, 3, 2], strides=[2, 2, 1], note="3-D")
    yield one("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, note="pads counted")
    counted = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1}
    yield one("AveragePool", x, **counted, opset=19, note="pads counted, ceil")
    yield one("AveragePool", x, kernel_shape=[3, 3], auto_pad="SAME_UPPER", count_include_pad=1, note="same, pads counted")
    yield one("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], opset=7)
    yield one("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], opset=1)
    yield one("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], outputs=2, note="indices")
    yield one("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], outputs=2, note="indices, pads")
    yield one("MaxPool", x, kernel_shape=[2, 3], outputs=2, storage_order=1, note="indices, columns first")
    yield one("MaxPool", normal(2, 3, 11), kernel_shape=[3], outputs=2, strides=[2], note="indices, 1-D")
    yield one("MaxPool", between(-9, 9, 1, 3, 8, 8, dtype=np.int8), kernel_shape=[2, 2], note="int8")
    for op in ("GlobalMaxPool", "GlobalAveragePool"):
        yield one(op, x)
        yield one(op, normal(2, 3, 7), note="1-D")
    yield one("GlobalLpPool", x, p=3)
    yield one("GlobalLpPool", x, opset=2)
    yield one("LpPool", x, kernel_shape=[3, 2], strides=[2, 2], p=3)
    yield one("LpPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], note="pads")
    yield one("LpPool", x, kernel_shape=[3, 3], auto_pad="SAME_UPPER", opset=11)
    yield one("LpPool", x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, note="ceil")
    places = np.array([[[[0, 3], [9, 10]], [[5, 2], [8, 15]]]], np.int64)
    yield one("MaxUnpool", normal(1, 2, 2, 2), places, kernel_shape=[2, 2], strides=[2, 2], opset=11)
    yield one(
        "MaxUnpool", normal(1, 2, 2, 2), places, held(1, 2, 5, 5), kernel_shape=[2, 2], strides=[2, 2], note="output_shape"
    )
    rois = np.array([[0, 0, 0, 5, 6], [0, 1, 2, 7, 8]], np.float32)
    yield one("MaxRoiPool", x, Constant(rois), pooled_shape=[2, 2])


def norms() -> Iterator[OneOp]:
    x, c = normal(2, 4, 5, 6), (weights(4), weights(4, seed=2))
    running = (weights(4, seed=3), Constant(between(0.5, 2, 4)))
    for opset in (7, 9, 14, 15):
        yield one("BatchNormalization", x, *c, *running, opset=opset, epsilon=1e-3)
    yield one("BatchNormalization", normal(3, 4), *c, *running, note="two axes")
    yield one("InstanceNormalization", x, *c)
    yield one("InstanceNormalization", normal(2, 4, 9), *c, epsilon=0.1, note="1-D")
    yield one("GroupNormalization", x, weights(2), weights(2, seed=2), num_groups=2, opset=18)
    yield one("GroupNormalization", x, *c, num_groups=2, opset=21)
    yield one("LayerNormalization", x, weights(6), weights(6, seed=2), opset=17)
    yield one("LayerNormalization", x, weights(5, 6), opset=17, axis=2, note="two axes, no bias")
    yield one("LayerNormalization", x, weights(6), weights(6, seed=2), opset=17, outputs=3, note="three outputs")
    yield one("RMSNormalization", x, weights(6), opset=23)
    yield one("RMSNormalization", x, weights(5, 6), axis=-2, opset=23, note="two axes")
    yield one("LRN", x, size=3)
    yield one("LRN", x, size=5, alpha=0.5, beta=0.5, bias=2.0, note="all attributes")
    yield one("MeanVarianceNormalization", x)
    yield one("MeanVarianceNormalization", x, axes=[1], note="axes")
    tokens, wide = normal(2, 3, 8), (weights(8), weights(8, seed=2))
    yield one("SkipLayerNormalization", tokens, normal(2, 3, 8, seed=1), *wide, domain=MICROSOFT)
    bias = weights(8, seed=4)
    yield one(
        "SkipLayerNormalization", tokens, normal(2, 3, 8, seed=1), *wide, bias, outputs=[0, 3], domain=MICROSOFT, note="sum"
    )


def resized() -> Iterator[OneOp]:
    x = normal(1, 3, 7, 6)
    for mode in ("nearest", "linear", "cubic"):
        yield one("Resize", x, None, held(1, 1, 2, 2, dtype=np.float32), mode=mode, note=f"{mode}, doubled")
        yield one("Resize", x, None, held(1, 1, 1.6, 2.3, dtype=np.float32), mode=mode, note=f"{mode}, scales")
        yield one("Resize", x, None, None, held(1, 3, 5, 11), mode=mode, note=f"{mode}, sizes")
        yield one("Resize", x, None, None, held(1, 3, 3, 2), mode=mode, note=f"{mode}, smaller")
    for coordinates in ("align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"):
        more = {"coordinate_transformation_mode": coordinates, "mode": "linear", "opset": 19}
        yield one("Resize", x, None, held(1, 1, 1.6, 2.3, dtype=np.float32), **more, note=coordinates)
        yield one("Resize", x, None, None, held(1, 3, 14, 12), **more, note=f"{coordinates}, doubled")
        yield one("Resize", x, None, None, held(1, 3, 1, 9), **more, note=f"{coordinates}, to one row")
    for rounding in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor"):
        yield one("Resize", x, None, held(1, 1, 2.5, 1.5, dtype=np.float32), nearest_mode=rounding, note=rounding)
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear", "extrapolation_value": 3.0}
    yield one("Resize", x, held(0, 0, 0.2, 0.3, 1, 1, 0.8, 0.9, dtype=np.float32), None, held(1, 3, 5, 6), **crop, note="crop")
    yield one("Resize", x, None, None, held(1, 3, 3, 4), mode="linear", antialias=1, note="antialias, linear")
    yield one("Resize", x, None, None, held(1, 3, 3, 4), mode="cubic", antialias=1, note="antialias, cubic")
    yield one("Resize", x, None, None, held(1, 3, 10, 4), mode="cubic", exclude_outside=1, note="outside excluded")
    yield one("Resize", x, None, held(1.5, 2, dtype=np.float32), axes=[2, 3], mode="linear", note="axes")
    yield one("Resize", x, None, None, held(10, 9), axes=[3, 2], note="axes, sizes")
    yield one("Resize", x, None, None, held(10, 9), axes=[2, 3], keep_aspect_ratio_policy="not_larger", note="not larger")
    yield one("Resize", x, None, None, held(10, 9), axes=[2, 3], keep_aspect_ratio_policy="not_smaller", note="not smaller")
    yield one("Resize", normal(1, 3, 7), None, held(1, 1, 1.5, dtype=np.float32), mode="linear", note="1-D")
    yield one("Resize", normal(1, 2, 3, 4, 5), None, held(1, 1, 2, 1.5, 2, dtype=np.float32), mode="linear", note="3-D")
    yield one("Resize", normal(1, 2, 3, 4, 5), None, held(1, 1, 2, 2, 2, dtype=np.float32), note="3-D, nearest")
    yield one("Resize", x, held(dtype=np.float32), held(1, 1, 2, 1.5, dtype=np.float32), opset=11, mode="linear")
    yield one("Resize", x, held(1, 1, 2, 1.5, dtype=np.float32), opset=10, mode="linear")
    yield one("Resize", x, held(1, 1, 0.6, 1.5, dtype=np.float32), opset=10, note="nearest")
    yield one("Upsample", x, held(1, 1, 2, 3, dtype=np.float32), opset=9)
    yield one("Upsample", x, held(1, 1, 2, 1.5, dtype=np.float32), opset=9, mode="linear", note="linear")
    yield one("Upsample", x, opset=7, scales=[1.0, 1.0, 2.0, 2.0])
    yield one("Upsample", x, opset=7, scales=[1.0, 1.0, 2.0, 2.0], mode="linear", note="linear")


def sampled() -> Iterator[OneOp]:
    x, grid = normal(2, 3, 7, 6), between(-1.3, 1.3, 2, 4, 5, 2)
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            yield one("GridSample", x, grid, opset=20, mode=mode, padding_mode=padding, note=f"{mode}, {padding}")
    yield one("GridSample", x, grid, opset=16, mode="bilinear", align_corners=1)
    yield one("GridSample", x, grid, opset=16, mode="bicubic", align_corners=1, padding_mode="reflection", note="bicubic")
    yield one("GridSample", normal(1, 2, 4, 5, 6), between(-1.2, 1.2, 1, 2, 3, 4, 3), opset=20, note="3-D")
    theta = np.array([[[0.8, 0.2, 0.1], [-0.1, 1.1, 0.3]]], np.float32)
    for align in (0, 1):
        yield one("AffineGrid", theta, held(1, 3, 4, 5), opset=20, align_corners=align, note="aligned" if align else "")
    yield one("AffineGrid", normal(1, 3, 4), held(1, 2, 3, 4, 5), opset=20, note="3-D")
    rois = Constant(np.array([[0.3, 1.1, 4.2, 5.6], [1, 0.5, 5.1, 3.3]], np.float32))
    which = held(0, 1)
    yield one("RoiAlign", x, rois, which, opset=10, output_height=2, output_width=3, sampling_ratio=2)
    yield one("RoiAlign", x, rois, which, opset=16, output_height=2, output_width=3, sampling_ratio=2)
    half = {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "spatial_scale": 0.5}
    yield one("RoiAlign", x, rois, which, opset=16, **half, note="scaled")
    yield one("RoiAlign", x, rois, which, opset=16, output_height=2, output_width=2, mode="max", sampling_ratio=1, note="max")
    yield one("RoiAlign", x, rois, which, opset=16, output_height=3, output_width=2, spatial_scale=0.5, note="adaptive")


def recurrent() -> Iterator[OneOp]:
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        x = normal(5, 2, 3)
        for direction, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            w, r, b = weights(ways, gates * 4, 3), weights(ways, gates * 4, 4, seed=2), weights(ways, gates * 8, seed=3)
            made = {"hidden_size": 4, "direction": direction, "outputs": 3 if op == "LSTM" else 2, "opset": 14}
            yield one(op, x, w, r, b, **made, note=direction)
        w, r, start = weights(1, gates * 4, 3), weights(1, gates * 4, 4, seed=2), normal(1, 2, 4, seed=5)
        yield one(op, x, w, r, hidden_size=4, opset=7, outputs=[0], note="no bias")
        yield one(op, x, w, r, None, None, start, hidden_size=4, opset=14, outputs=2, note="initial state")
        lengths = Constant(np.array([5, 3], np.int32))
        yield one(op, x, w, r, None, lengths, hidden_size=4, opset=14, outputs=2, note="lengths")
        yield one(op, x, w, r, hidden_size=4, opset=14, outputs=2, clip=0.5, note="clip")
    w, r, b = weights(1, 12, 3), weights(1, 12, 4, seed=2), weights(1, 24, seed=3)
    yield one("GRU", x, w, r, b, hidden_size=4, opset=14, outputs=2, linear_before_reset=1, note="linear before reset")
    yield one("GRU", x, w, r, b, hidden_size=4, opset=14, outputs=2, activations=["HardSigmoid", "Relu"], note="activations")
    w, r, peepholes = weights(1, 16, 3), weights(1, 16, 4, seed=2), weights(1, 12, seed=4)
    cell = (normal(1, 2, 4, seed=5), normal(1, 2, 4, seed=6), peepholes)
    yield one("LSTM", x, w, r, None, None, *cell, hidden_size=4, opset=14, outputs=3, note="peepholes")
    yield one("RNN", x, weights(1, 4, 3), weights(1, 4, 4, seed=2), hidden_size=4, activations=["Relu"], outputs=2, note="relu")


def attention() -> Iterator[OneOp]:
    q, k, v = normal(1, 2, 3, 4), normal(1, 2, 5, 4, seed=1), normal(1, 2, 5, 6, seed=2)
    yield one("Attention", q, k, v, opset=23)
    yield one("Attention", q, k, v, normal(3, 5, seed=3), opset=23, note="mask")
    yield one("Attention", q, q, q, opset=23, is_causal=1, scale=0.3, note="causal")
    flat = normal(1, 3, 8), normal(1, 5, 8, seed=1), normal(1, 5, 8, seed=2)
    yield one("Attention", *flat, opset=23, q_num_heads=2, kv_num_heads=2, note="three axes")
    angles = (Constant(np.cos(normal(8, 2))), Constant(np.sin(normal(8, 2))))
    yield one("RotaryEmbedding", normal(1, 2, 3, 4), *angles, held(0, 1, 2).value[None], opset=23)
    fused = normal(1, 5, 8), weights(8, 24), weights(24)
    yield one("Attention", *fused, domain=MICROSOFT, num_heads=2)
    mask = Constant(np.array([[1, 1, 1, 0, 0]], np.int32))
    yield one("Attention", *fused, mask, domain=MICROSOFT, num_heads=2, note="mask")
    yield one("Attention", *fused, domain=MICROSOFT, num_heads=2, unidirectional=1, note="causal")
    yield one("MultiHeadAttention", *flat, weights(24), domain=MICROSOFT, num_heads=2)
    ids = between(0, 9, 2, 5, dtype=np.int32)
    tables = (weights(9, 8), weights(6, 8, seed=2), weights(2, 8, seed=3), weights(8, seed=4), weights(8, seed=5))
    yield one("EmbedLayerNormalization", ids, between(0, 2, 2, 5, dtype=np.int32), *tables, domain=MICROSOFT, outputs=2)


def signals() -> Iterator[OneOp]:
    x = normal(1, 8, 1)
    yield one("DFT", x, None, scalar(1, np.int64), opset=20)
    yield one("DFT", x, None, scalar(1, np.int64), opset=20, onesided=1, note="one sided")
    yield one("DFT", normal(1, 8, 2), None, scalar(1, np.int64), opset=20, inverse=1, note="inverse")
    yield one("DFT", x, opset=17, axis=1)
    yield one("STFT", normal(1, 16, 1), scalar(4, np.int64), weights(8), onesided=1, opset=17)
