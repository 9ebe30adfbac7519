"""Ops with tensors or sizes of their own: convs, products, norms, pools, reductions. Each frontend has a reader for them."""

import operator
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from reparam_compiler.ir.ops import Facts, Reduction
from reparam_compiler.vocabulary.row import Row, onnx, rows

_BILINEAR = Facts.BILINEAR
_LINEAR = Facts.LINEAR
_LIKE_INPUT = Facts.LIKE_INPUT
_DROPPED = Facts.RANDOM | Facts.VIEW | Facts.LIKE_INPUT
_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

ROWS = (
    # sliding windows
    Row("conv1d", modules=(nn.Conv1d,), facts=_BILINEAR),
    Row("conv2d", modules=(nn.Conv2d,), onnx=onnx("Conv"), facts=_BILINEAR),
    Row("conv3d", modules=(nn.Conv3d,), facts=_BILINEAR),
    Row("conv_transpose1d", modules=(nn.ConvTranspose1d,), facts=_BILINEAR),
    Row("conv_transpose2d", modules=(nn.ConvTranspose2d,), onnx=onnx("ConvTranspose"), facts=_BILINEAR),
    Row("conv_transpose3d", modules=(nn.ConvTranspose3d,), facts=_BILINEAR),
    Row("convolution", facts=_BILINEAR),
    Row("padded_conv", (), facts=_BILINEAR),
    Row("avg_pool1d", modules=(nn.AvgPool1d,), module_arguments=_POOL, facts=_LINEAR, form="resampled", axes=1),
    Row(
        "avg_pool2d",
        modules=(nn.AvgPool2d,),
        module_arguments=(*_POOL, "divisor_override"),
        onnx=onnx("AveragePool"),
        facts=_LINEAR,
        form="resampled",
        axes=2,
    ),
    Row(
        "avg_pool3d",
        modules=(nn.AvgPool3d,),
        module_arguments=(*_POOL, "divisor_override"),
        facts=_LINEAR,
        form="resampled",
        axes=3,
    ),
    Row("max_pool1d", modules=(nn.MaxPool1d,), module_arguments=_MAX_POOL, form="resampled", axes=1),
    Row("max_pool2d", modules=(nn.MaxPool2d,), module_arguments=_MAX_POOL, onnx=onnx("MaxPool"), form="resampled", axes=2),
    Row("max_pool3d", modules=(nn.MaxPool3d,), module_arguments=_MAX_POOL, form="resampled", axes=3),
    Row("max_pool2d_with_indices", form="resampled", axes=2),
    Row("adaptive_avg_pool1d", modules=(nn.AdaptiveAvgPool1d,), module_arguments=("output_size",)),
    Row(
        "adaptive_avg_pool2d",
        modules=(nn.AdaptiveAvgPool2d,),
        module_arguments=("output_size",),
        onnx=onnx("GlobalAveragePool"),
    ),
    Row("adaptive_avg_pool3d", modules=(nn.AdaptiveAvgPool3d,), module_arguments=("output_size",)),
    Row("adaptive_max_pool1d", modules=(nn.AdaptiveMaxPool1d,), form="resampled", axes=1),
    Row("adaptive_max_pool2d", modules=(nn.AdaptiveMaxPool2d,), onnx=onnx("GlobalMaxPool"), form="resampled", axes=2),
    Row("adaptive_max_pool3d", form="resampled", axes=3),
    Row("lp_pool2d", onnx=onnx("LpPool", "GlobalLpPool"), form="resampled", axes=2),
    Row("interpolate", modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), form="resampled"),
    Row("resize", (), onnx=onnx("Resize", "Upsample"), facts=_BILINEAR | Facts.WIDTH_OF_INPUT | Facts.SIZED_BY_VALUE),
    *rows("lp_pool1d upsample_nearest1d upsample_linear1d", form="resampled", axes=1),
    *rows("upsample_nearest2d upsample_bilinear2d upsample_bicubic2d", form="resampled", axes=2),
    *rows("_upsample_bilinear2d_aa _upsample_bicubic2d_aa", form="resampled", axes=2),
    *rows("upsample_nearest3d upsample_trilinear3d", form="resampled", axes=3),
    # products
    Row("linear", modules=(nn.Linear,), onnx=onnx("Gemm"), facts=_BILINEAR),
    Row(
        "matmul",
        ("matmul", "__matmul__"),
        functions=(operator.matmul,),
        in_place=(operator.imatmul,),
        onnx=onnx("MatMul"),
        facts=_BILINEAR,
    ),
    Row("einsum", onnx=onnx("Einsum"), facts=_BILINEAR | Facts.VIEW),
    *rows("mm bmm addmm baddbmm tensordot", facts=_BILINEAR),
    Row("scaled_dot_product_attention"),
    Row("embedding", excluded=(F.embedding,)),
    Row("functional.embedding", (), functions=(F.embedding,), modules=(nn.Embedding,)),
    # norms
    Row(
        "batch_norm",
        excluded=(F.batch_norm,),
        modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        facts=_LIKE_INPUT,
    ),
    Row("functional.batch_norm", (), functions=(F.batch_norm,), onnx=onnx("BatchNormalization"), facts=_LIKE_INPUT),
    Row("_native_batch_norm_legit_no_training", facts=Facts.GIVES_FIRST),
    Row("layer_norm", modules=(nn.LayerNorm,), onnx=onnx("LayerNormalization"), facts=_LIKE_INPUT),
    Row("native_layer_norm", facts=Facts.GIVES_FIRST),
    Row("rms_norm", modules=(nn.RMSNorm,), onnx=onnx("RMSNormalization")),
    Row("group_norm", modules=(nn.GroupNorm,), onnx=onnx("GroupNormalization"), facts=_LIKE_INPUT),
    Row("instance_norm", excluded=(F.instance_norm,), onnx=onnx("InstanceNormalization")),
    Row(
        "functional.instance_norm",
        (),
        functions=(F.instance_norm,),
        modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    ),
    Row("normalize", onnx=onnx("LpNormalization")),
    # along lines of elements
    Row("softmax", modules=(nn.Softmax, nn.Softmax2d), onnx=onnx("Softmax")),
    Row("log_softmax", modules=(nn.LogSoftmax,), onnx=onnx("LogSoftmax")),
    *rows("_softmax _log_softmax softmin cumprod"),
    Row("cumsum", onnx=onnx("CumSum"), facts=_LINEAR),
    Row("glu", modules=(nn.GLU,), module_arguments=("dim",)),
    Row("prelu", ("prelu", "_prelu_kernel"), modules=(nn.PReLU,), onnx=onnx("PRelu")),
    Row("mean", onnx=onnx("ReduceMean"), facts=_LINEAR),
    Row("sum", onnx=onnx("ReduceSum"), facts=_LINEAR),
    Row("amax", onnx=onnx("ReduceMax")),
    Row("amin", onnx=onnx("ReduceMin")),
    Row("linalg_vector_norm", functions=(torch.linalg.vector_norm,), onnx=onnx("ReduceL2")),
    Row("sum_of_values", (), onnx=onnx("Sum"), facts=_LINEAR),
    Row("mean_of_values", (), onnx=onnx("Mean"), facts=_LINEAR),
    Row("argmax", onnx=onnx("ArgMax"), facts=Facts.DISCONTINUOUS),
    Row("argmin", onnx=onnx("ArgMin"), facts=Facts.DISCONTINUOUS),
    Row("topk", onnx=onnx("TopK"), facts=Facts.DISCONTINUOUS),
    *rows("norm var std"),
    # dropout
    Row("dropout", modules=(nn.Dropout,), module_arguments=("p", "training"), onnx=onnx("Dropout"), facts=_DROPPED),
    Row("dropout1d", modules=(nn.Dropout1d,), module_arguments=("p", "training"), facts=_DROPPED),
    Row("dropout2d", modules=(nn.Dropout2d,), module_arguments=("p", "training"), facts=_DROPPED),
    Row("dropout3d", modules=(nn.Dropout3d,), module_arguments=("p", "training"), facts=_DROPPED),
    Row("alpha_dropout", modules=(nn.AlphaDropout,), module_arguments=("p", "training"), facts=_DROPPED),
    Row("feature_alpha_dropout", modules=(nn.FeatureAlphaDropout,), module_arguments=("p", "training"), facts=_DROPPED),
    Row("feature_dropout", facts=_DROPPED),
    Row("native_dropout", facts=Facts.RANDOM | Facts.VIEW),
)
REDUCTIONS: Mapping[str, Reduction] = {
    "mean": "mean",
    "sum": "sum",
    "amax": "max",
    "amin": "min",
    "linalg_vector_norm": "norm",
}
"""For each row that reduces along axes what it makes of the elements there."""
