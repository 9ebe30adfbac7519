"""Ops that move elements, or give a part of them: reshapes, slices, joins, views of a storage."""

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.row import OnnxType, Row, moves, onnx, rows

_VIEW = Facts.VIEW
_LINEAR = Facts.LINEAR
_LINEAR_VIEW = Facts.LINEAR | Facts.VIEW
_DEPTH_TO_SPACE = (OnnxType("DepthToSpace", (("blocksize", None),), requires=(("mode", "DCR", "CRD"),)),)


def _space_to_depth(x: Tensor, blocksize: int) -> Tensor:
    """Pixel unshuffle in ONNX's order of channels: those of a phase together."""
    n, c, h, w = x.shape
    phases = F.pixel_unshuffle(x, blocksize).reshape(n, c, blocksize**2, h // blocksize, w // blocksize)
    return phases.transpose(1, 2).flatten(1, 2)


ROWS = (
    # the same elements in another shape
    Row("view", facts=_LINEAR_VIEW),
    Row("reshape", onnx=onnx("Reshape"), facts=_LINEAR_VIEW),
    Row("view_as", facts=_VIEW | Facts.SHAPED_AS_OTHER),
    Row("reshape_as", facts=_VIEW | Facts.SHAPED_AS_OTHER),
    Row(
        "flatten",
        modules=(nn.Flatten,),
        module_arguments=("start_dim", "end_dim"),
        onnx=onnx("Flatten"),
        facts=_LINEAR_VIEW,
    ),
    Row("unflatten", modules=(nn.Unflatten,), facts=_LINEAR_VIEW),
    Row("squeeze", onnx=onnx("Squeeze"), facts=_LINEAR_VIEW, form="rearranged"),
    Row("unsqueeze", onnx=onnx("Unsqueeze"), facts=_LINEAR_VIEW),
    *rows("_unsafe_view _reshape_alias ravel atleast_1d atleast_2d atleast_3d", facts=_VIEW),
    # axes in another order
    Row("permute", onnx=onnx("Transpose"), facts=_LINEAR_VIEW, form="rearranged"),
    *rows("transpose t movedim moveaxis swapaxes swapdims", facts=_LINEAR_VIEW, form="rearranged"),
    *rows("adjoint numpy_T", facts=_VIEW, form="rearranged"),
    *(Row(word, (), attributes=(word,), facts=_VIEW, form="rearranged") for word in ("T", "mT")),
    *(Row(word, (), attributes=(word,), facts=_VIEW) for word in ("H", "mH")),
    # a part
    Row("getitem", (), functions=(operator.getitem, Tensor.__getitem__), facts=_LINEAR_VIEW),
    Row("slice", onnx=onnx("Slice"), facts=_LINEAR_VIEW),
    Row("split", onnx=onnx("Split"), facts=_LINEAR_VIEW),
    *rows("select narrow unbind chunk tensor_split hsplit vsplit dsplit diagonal as_strided", facts=_LINEAR_VIEW),
    *rows("split_with_sizes unsafe_chunk unsafe_split unsafe_split_with_sizes", facts=_VIEW),
    Row("unfold", excluded=(F.unfold,), facts=_LINEAR_VIEW),
    Row("index", facts=Facts.BILINEAR),
    Row("index_select", facts=Facts.BILINEAR),
    Row("gather", onnx=onnx("Gather"), facts=Facts.BILINEAR),
    Row("gather_nd", (), onnx=onnx("GatherND"), facts=Facts.BILINEAR),
    Row("scatter_nd", (), onnx=onnx("ScatterND"), facts=Facts.BILINEAR),
    *rows("take index_put index_copy scatter", facts=Facts.BILINEAR),
    *rows("slice_scatter select_scatter", facts=_LINEAR),
    # repeated, rolled, joined, padded
    Row("expand", onnx=onnx("Expand"), facts=_LINEAR_VIEW | Facts.SIZED_BY_VALUE),
    Row("expand_as", facts=_LINEAR_VIEW),
    *rows("broadcast_to broadcast_tensors meshgrid expand_copy", facts=_VIEW),
    Row("tile", onnx=onnx("Tile"), facts=_LINEAR | Facts.SIZED_BY_VALUE, form="rearranged"),
    *rows("repeat repeat_interleave", facts=_LINEAR, form="rearranged"),
    *rows("roll flip stack hstack vstack dstack", facts=_LINEAR),
    Row("rot90", facts=_LINEAR_VIEW),
    Row("cat", ("cat", "concat", "concatenate"), onnx=onnx("Concat"), facts=_LINEAR),
    Row(
        "pad",
        modules=(
            *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
        onnx=onnx("Pad"),
        facts=_LINEAR | Facts.SIZED_BY_VALUE,
    ),
    Row("constant_pad_nd"),
    moves("pixel_shuffle", F.pixel_shuffle, nn.PixelShuffle, onnx=_DEPTH_TO_SPACE, parameters=("upscale_factor",)),
    moves("pixel_unshuffle", F.pixel_unshuffle, nn.PixelUnshuffle, parameters=("downscale_factor",)),
    Row(
        "space_to_depth",
        (),
        onnx=(OnnxType("SpaceToDepth", (("blocksize", None),)),),
        facts=_LINEAR,
        parameters=(("blocksize", None),),
        form="move",
        math=_space_to_depth,
    ),
    Row("channel_shuffle", modules=(nn.ChannelShuffle,), module_arguments=("groups",), facts=_LINEAR),
    Row("im2col", ("im2col",), functions=(F.unfold,), modules=(nn.Unfold,), facts=_LINEAR),
    Row("fold", ("fold", "col2im"), modules=(nn.Fold,), facts=_LINEAR),
    Row("trilu", (), onnx=onnx("Trilu"), facts=_LINEAR),
    *rows("tril triu", facts=_LINEAR),
    # the same value, or perhaps
    Row("identity", (), functions=(operator.pos,), modules=(nn.Identity,), onnx=onnx("Identity"), facts=_LINEAR | Facts.SAME),
    *rows("detach alias requires_grad", facts=Facts.SAME),
    Row("contiguous", facts=_LINEAR_VIEW),
    Row("clone", facts=Facts.LIKE_INPUT),
    Row("lift_fresh_copy"),
    *(Row(word, (), attributes=(word,), facts=_VIEW) for word in ("real", "imag", "data")),
    *rows("view_as_real view_as_complex view_as_real_copy lift_fresh conj conj_physical resolve_conj resolve_neg", facts=_VIEW),
    *rows("positive sum_to_size cartesian_prod", facts=_VIEW),
    Row("nested_tensor", (), functions=(torch.nested.nested_tensor,), facts=_VIEW),
    # in another dtype, or on another device
    Row("to", onnx=onnx("Cast", "CastLike"), facts=_VIEW | Facts.PIECEWISE, form="recast"),
    *rows("type type_as float double half bfloat16", facts=_VIEW, form="recast"),
    *rows("cpu cuda", facts=_VIEW),
    *rows("_to_copy bool int long", form="recast"),
    # what is written
    Row("setitem", ("__setitem__",), functions=(operator.setitem,)),
    Row("copy", facts=_LINEAR),
    *rows("fill zero"),
)
