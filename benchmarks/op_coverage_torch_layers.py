"""One-op models of torch: layers and the functions behind them, as a case each (`op_coverage_torch_tensors.py`)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.op_coverage_torch_tensors import Case, flags, real, whole

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.SELU, nn.ELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
    *(nn.LeakyReLU, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.LogSigmoid, nn.Sigmoid),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for family in (activations, convolutions, pools, resizes, samplers, pads, norms, losses, attentions, recurrences, halves):
        yield from family()


def activations() -> Iterator[Case]:
    """Activations, at their defaults and at other settings."""
    x, image = 3 * real(3, 6), real(1, 6, 4, 5)
    for layer in (
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.ELU,
        nn.CELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
    ):
        yield layer.__name__, layer(), x
    for layer in (
        nn.LeakyReLU,
        nn.Softplus,
        nn.Softsign,
        nn.Softshrink,
        nn.Hardshrink,
        nn.Tanhshrink,
        nn.LogSigmoid,
        nn.Sigmoid,
    ):
        yield layer.__name__, layer(), x
    yield "GELU tanh", nn.GELU("tanh"), x
    yield "ELU alpha", nn.ELU(0.5), x
    yield "CELU alpha", nn.CELU(2.0), x
    yield "Hardtanh bounds", nn.Hardtanh(-2.0, 0.5), x
    yield "LeakyReLU slope", nn.LeakyReLU(0.3), x
    yield "LeakyReLU negative slope", nn.LeakyReLU(-0.5), x
    yield "Softplus beta threshold", nn.Softplus(2.0, 3.0), x
    yield "Softshrink lambda", nn.Softshrink(1.0), x
    yield "Hardshrink lambda", nn.Hardshrink(1.5), x
    yield "Threshold", nn.Threshold(0.3, -1.0), x
    yield "RReLU", nn.RReLU(), x
    yield "PReLU", nn.PReLU(), image
    yield "PReLU of channels", nn.PReLU(6), image
    yield "PReLU of rank 2", nn.PReLU(6), x
    yield "GLU", nn.GLU(), x
    yield "GLU of channels", nn.GLU(1), image
    yield "Softmax", nn.Softmax(-1), x
    yield "Softmax of channels", nn.Softmax(1), image
    yield "Softmin", nn.Softmin(1), x
    yield "LogSoftmax", nn.LogSoftmax(1), x
    yield "Softmax2d", nn.Softmax2d(), image
    yield "Dropout", nn.Dropout(), x
    yield "AlphaDropout", nn.AlphaDropout(), x


def convolutions() -> Iterator[Case]:
    """Convs of every rank, plain and transposed, and dense layers."""
    line, image, volume = real(2, 4, 9), real(1, 4, 7, 9), real(1, 4, 5, 6, 7)
    yield "Conv1d", nn.Conv1d(4, 6, 3, padding=1), line
    yield "Conv1d stride dilation groups", nn.Conv1d(4, 6, 3, stride=2, dilation=2, groups=2), line
    yield "Conv1d unbatched", nn.Conv1d(4, 6, 3), line[0]
    yield "Conv2d", nn.Conv2d(4, 6, 3), image
    yield "Conv2d same", nn.Conv2d(4, 6, (4, 3), padding="same"), image
    yield "Conv2d dilation", nn.Conv2d(4, 6, 3, padding=2, dilation=2), image
    yield "Conv2d groups stride", nn.Conv2d(4, 6, 3, stride=(2, 1), groups=2, bias=False), image
    yield "Conv2d depthwise multiplier", nn.Conv2d(4, 8, 3, groups=4), image
    yield "Conv2d reflect", nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), image
    yield "Conv2d circular", nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), image
    yield "Conv2d replicate", nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), image
    yield "Conv2d unbatched", nn.Conv2d(4, 6, 3), image[0]
    yield "Conv2d with computed weights", lambda x, w: F.conv2d(x, w), image, real(6, 4, 3, 3)
    yield "Conv3d", nn.Conv3d(4, 6, 3, padding=1), volume
    yield "Conv3d stride groups", nn.Conv3d(4, 6, (1, 3, 3), stride=(1, 2, 2), groups=2), volume
    yield "ConvTranspose1d", nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), line
    yield "ConvTranspose2d", nn.ConvTranspose2d(4, 6, 2, stride=2), image
    yield "ConvTranspose2d padding", nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), image
    yield "ConvTranspose2d groups", nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), image
    yield "ConvTranspose2d dilation", nn.ConvTranspose2d(4, 6, 3, dilation=2), image
    yield "ConvTranspose2d depthwise", nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4, bias=False), image
    yield "ConvTranspose3d", nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1), volume
    yield "ConvTranspose3d groups output padding", nn.ConvTranspose3d(4, 6, 2, stride=2, output_padding=1, groups=2), volume
    yield "Linear", nn.Linear(6, 5), real(3, 6)
    yield "Linear of rank 3 without bias", nn.Linear(6, 5, bias=False), real(2, 3, 6)
    yield "Linear of a vector", nn.Linear(6, 5), real(6)
    yield "Bilinear", nn.Bilinear(4, 5, 3), real(2, 4), real(2, 5)
    yield "Unfold", nn.Unfold(3), image
    yield "Unfold settings", nn.Unfold((2, 3), dilation=(1, 2), padding=1, stride=2), image
    yield "Fold", nn.Fold((6, 7), (2, 3)), real(1, 12, 25)
    yield "Fold settings", nn.Fold((6, 7), 2, padding=1, stride=2), real(1, 12, 16)


def pools() -> Iterator[Case]:
    """Pooling: ceil mode, padding that counts or not, divisors, dilation, indices, adaptive sizes."""
    line, image, volume = real(2, 4, 11), real(1, 4, 11, 13), real(1, 2, 6, 7, 9)
    yield "AvgPool1d", nn.AvgPool1d(3, 2, 1), line
    yield "AvgPool1d ceil", nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), line
    yield "AvgPool2d", nn.AvgPool2d(2), image
    yield "AvgPool2d padding", nn.AvgPool2d(3, 2, 1), image
    yield "AvgPool2d padding not counted", nn.AvgPool2d(3, 2, 1, count_include_pad=False), image
    yield "AvgPool2d ceil", nn.AvgPool2d(3, 2, ceil_mode=True), image
    yield "AvgPool2d ceil padding", nn.AvgPool2d(2, 2, 1, ceil_mode=True), image
    yield "AvgPool2d ceil padding not counted", nn.AvgPool2d((3, 4), 2, 1, ceil_mode=True, count_include_pad=False), image
    yield "AvgPool2d ceil window outside", nn.AvgPool2d(2, 3, 1, ceil_mode=True), real(1, 2, 6, 9)
    yield "AvgPool2d divisor", nn.AvgPool2d(3, 2, divisor_override=4), image
    yield "AvgPool2d divisor padding ceil", nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5), image
    yield "AvgPool2d unbatched", nn.AvgPool2d(3), image[0]
    yield "AvgPool3d", nn.AvgPool3d(3, 2, 1), volume
    yield "AvgPool3d ceil", nn.AvgPool3d(2, 2, ceil_mode=True), volume
    yield "AvgPool3d divisor", nn.AvgPool3d(2, divisor_override=3), volume
    yield "MaxPool1d", nn.MaxPool1d(3, 2, 1), line
    yield "MaxPool1d dilation ceil", nn.MaxPool1d(3, 2, 1, dilation=2, ceil_mode=True), line
    yield "MaxPool2d", nn.MaxPool2d(3, 2, 1), image
    yield "MaxPool2d ceil", nn.MaxPool2d(2, ceil_mode=True), image
    yield "MaxPool2d ceil padding", nn.MaxPool2d(3, 2, 1, ceil_mode=True), image
    yield "MaxPool2d ceil window outside", nn.MaxPool2d(2, 3, 1, ceil_mode=True), real(1, 2, 6, 9)
    yield "MaxPool2d dilation", nn.MaxPool2d(3, 1, 1, dilation=2), image
    yield "MaxPool2d uneven", nn.MaxPool2d((3, 2), (2, 1), (1, 0)), image
    yield "MaxPool2d of negatives", nn.MaxPool2d(3, 2, 1), -5 - image.abs()
    yield "MaxPool2d indices", nn.MaxPool2d(2, return_indices=True), image
    yield "MaxPool2d indices padding", nn.MaxPool2d(3, 2, 1, return_indices=True), image
    yield "MaxPool2d indices of equals", nn.MaxPool2d(2, return_indices=True), torch.ones(1, 2, 4, 6)
    yield "MaxPool1d indices", nn.MaxPool1d(2, return_indices=True), line
    yield "MaxPool3d", nn.MaxPool3d(2), volume
    yield "MaxPool3d padding ceil", nn.MaxPool3d(3, 2, 1, ceil_mode=True), volume
    yield "MaxPool3d indices", nn.MaxPool3d(2, return_indices=True), volume
    yield "MaxUnpool2d", unpooled, real(1, 2, 6, 8)
    yield "LPPool2d", nn.LPPool2d(2, 3, 2), image
    yield "LPPool1d", nn.LPPool1d(3, 2), line.abs()
    yield "FractionalMaxPool2d fixed", nn.FractionalMaxPool2d(2, (5, 6), _random_samples=torch.full((1, 4, 2), 0.3)), image
    for layer in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
        for size in (1, (4, 5), (3, None), (7, 2), (13, 17)):
            yield f"{layer.__name__} {size}", layer(size), image
    yield "AdaptiveAvgPool1d 1", nn.AdaptiveAvgPool1d(1), line
    yield "AdaptiveAvgPool1d 4", nn.AdaptiveAvgPool1d(4), line
    yield "AdaptiveMaxPool1d 4", nn.AdaptiveMaxPool1d(4), line
    yield "AdaptiveMaxPool2d indices", nn.AdaptiveMaxPool2d(4, return_indices=True), image
    yield "AdaptiveAvgPool3d", nn.AdaptiveAvgPool3d((2, 3, 4)), volume
    yield "AdaptiveMaxPool3d", nn.AdaptiveMaxPool3d(2), volume


def unpooled(x: Tensor) -> Tensor:
    """The largest of each window, at its place among zeros."""
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, indices, 2)


def resizes() -> Iterator[Case]:
    """Interpolation by sizes and factors, whole and not, up and down."""
    line, image, volume = real(2, 3, 9), real(1, 3, 9, 11), real(1, 2, 4, 5, 6)
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area"):
        for size in ((18, 22), (15, 20), (4, 5), (27, 5)):
            yield f"interpolate {mode} {size}", lambda x, m=mode, s=size: F.interpolate(x, s, mode=m), image
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        for factor in (2, 1.5, 1.7, 0.6):
            yield f"interpolate {mode} x{factor}", lambda x, m=mode, f=factor: F.interpolate(x, scale_factor=f, mode=m), image
    for mode in ("bilinear", "bicubic"):
        for size in ((18, 22), (4, 5), (1, 1)):
            name = f"interpolate {mode} {size} corners"
            yield name, lambda x, m=mode, s=size: F.interpolate(x, s, mode=m, align_corners=True), image
            if size != (1, 1):
                name = f"interpolate {mode} {size} antialias"
                yield name, lambda x, m=mode, s=size: F.interpolate(x, s, mode=m, antialias=True), image
        name = f"interpolate {mode} x1.7 corners"
        yield name, lambda x, m=mode: F.interpolate(x, scale_factor=1.7, mode=m, align_corners=True), image
        name = f"interpolate {mode} x1.7 recomputed"
        yield name, lambda x, m=mode: F.interpolate(x, scale_factor=1.7, mode=m, recompute_scale_factor=True), image
    yield "interpolate nearest factors", lambda x: F.interpolate(x, scale_factor=(2.0, 1.5)), image
    for mode in ("nearest", "nearest-exact", "linear"):
        yield f"interpolate {mode} 1d", lambda x, m=mode: F.interpolate(x, 14, mode=m), line
        yield f"interpolate {mode} 1d x1.7", lambda x, m=mode: F.interpolate(x, scale_factor=1.7, mode=m), line
    for mode in ("nearest", "nearest-exact", "trilinear", "area"):
        yield f"interpolate {mode} 3d", lambda x, m=mode: F.interpolate(x, (8, 5, 3), mode=m), volume
    yield "interpolate trilinear corners", lambda x: F.interpolate(x, (8, 5, 3), mode="trilinear", align_corners=True), volume
    yield "UpsamplingNearest2d", nn.UpsamplingNearest2d(scale_factor=2), image
    yield "UpsamplingBilinear2d", nn.UpsamplingBilinear2d(scale_factor=2), image


def samplers() -> Iterator[Case]:
    """grid_sample and affine_grid."""
    image, grid = real(1, 3, 6, 7), 1.3 * (2 * torch.rand(1, 4, 5, 2) - 1)
    for mode in ("bilinear", "nearest", "bicubic"):
        for padding in ("zeros", "border", "reflection"):
            for corners in (False, True):
                yield (
                    f"grid_sample {mode} {padding}{' corners' if corners else ''}",
                    lambda x, g, m=mode, p=padding, c=corners: F.grid_sample(x, g, m, p, align_corners=c),
                    image,
                    grid,
                )
    volume, grid3 = real(1, 2, 4, 5, 6), 2 * torch.rand(1, 2, 3, 4, 3) - 1
    yield "grid_sample 3d", lambda x, g: F.grid_sample(x, g, align_corners=False), volume, grid3
    for corners in (False, True):
        name = f"affine_grid{' corners' if corners else ''}"
        yield name, lambda t, c=corners: F.affine_grid(t, [2, 3, 4, 5], align_corners=c), real(2, 2, 3)
    yield "affine_grid 3d", lambda t: F.affine_grid(t, [2, 3, 2, 4, 5], align_corners=False), real(2, 3, 4)


def pads() -> Iterator[Case]:
    """Padding, and crops by negative padding."""
    image = real(1, 3, 5, 6)
    yield "pad", lambda x: F.pad(x, (1, 2)), image
    yield "pad value", lambda x: F.pad(x, (1, 2, 0, 3), value=0.5), image
    yield "pad channels", lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), image
    yield "pad negative", lambda x: F.pad(x, (-1, 2, 1, -2)), image
    yield "pad inf", lambda x: F.pad(x, (1, 1), value=float("-inf")).amax(-1), image
    yield "pad of int", lambda x: F.pad(x, (1, 2)), whole(2, 3)
    for mode in ("reflect", "replicate", "circular"):
        yield f"pad {mode}", lambda x, m=mode: F.pad(x, (1, 2, 3, 0), mode=m), image
        yield f"pad {mode} 1d", lambda x, m=mode: F.pad(x, (2, 1), mode=m), real(1, 3, 7)
    yield "pad replicate 3d", lambda x: F.pad(x, (1, 0, 2, 1, 1, 1), mode="replicate"), real(1, 2, 3, 4, 5)
    yield "ZeroPad2d", nn.ZeroPad2d((1, 0, 2, 1)), image
    yield "ConstantPad1d", nn.ConstantPad1d(2, 3.5), real(1, 3, 7)
    yield "ReflectionPad2d", nn.ReflectionPad2d(2), image


def norms() -> Iterator[Case]:
    """Norms in evaluation mode, with and without weights and statistics."""
    image = real(2, 6, 4, 5)
    yield "BatchNorm1d", nn.BatchNorm1d(6), real(3, 6)
    yield "BatchNorm2d", nn.BatchNorm2d(6, eps=1e-3), image
    yield "BatchNorm2d not affine", nn.BatchNorm2d(6, affine=False), image
    yield "BatchNorm2d without statistics", nn.BatchNorm2d(6, track_running_stats=False), image
    yield "BatchNorm3d", nn.BatchNorm3d(2), real(1, 2, 3, 4, 5)
    yield "LayerNorm", nn.LayerNorm(5), image
    yield "LayerNorm of two axes", nn.LayerNorm((4, 5), eps=1e-3), image
    yield "LayerNorm not affine", nn.LayerNorm(5, elementwise_affine=False), image
    yield "LayerNorm without bias", nn.LayerNorm(5, bias=False), image
    yield "GroupNorm", nn.GroupNorm(3, 6), image
    yield "GroupNorm not affine", nn.GroupNorm(2, 6, affine=False), image
    yield "GroupNorm of rank 2", nn.GroupNorm(2, 6), real(3, 6)
    yield "GroupNorm of rank 3", nn.GroupNorm(2, 6), real(3, 6, 4)
    yield "InstanceNorm1d", nn.InstanceNorm1d(6), real(2, 6, 9)
    yield "InstanceNorm2d", nn.InstanceNorm2d(6), image
    yield "InstanceNorm2d affine", nn.InstanceNorm2d(6, affine=True), image
    yield "InstanceNorm2d statistics", nn.InstanceNorm2d(6, track_running_stats=True), image
    yield "RMSNorm", nn.RMSNorm(5), image
    yield "LocalResponseNorm", nn.LocalResponseNorm(3), image
    yield "normalize", lambda x: F.normalize(x, dim=1), image
    yield "normalize p 1", lambda x: F.normalize(x, p=1, dim=-1), image


def losses() -> Iterator[Case]:
    """Losses that models give in evaluation."""
    x, y, classes = real(4, 5), real(4, 5), whole(4, low=0, high=5)
    yield "cross_entropy", lambda a, c: F.cross_entropy(a, c), x, classes
    yield "cross_entropy of pictures", lambda a, c: F.cross_entropy(a, c), real(2, 5, 3, 4), whole(2, 3, 4, low=0, high=5)
    yield "nll_loss", lambda a, c: F.nll_loss(a.log_softmax(1), c), x, classes
    yield "mse_loss", lambda a, b: F.mse_loss(a, b), x, y
    yield "l1_loss none", lambda a, b: F.l1_loss(a, b, reduction="none"), x, y
    yield "smooth_l1_loss", lambda a, b: F.smooth_l1_loss(a, b), x, y
    yield "huber_loss", lambda a, b: F.huber_loss(a, b, delta=0.5), x, y
    yield "binary_cross_entropy", lambda a, b: F.binary_cross_entropy(a, b), torch.rand(4, 5) * 0.9 + 0.05, torch.rand(4, 5)
    yield "bce with logits", lambda a, b: F.binary_cross_entropy_with_logits(a, b), x, torch.rand(4, 5)
    yield "kl_div", lambda a, b: F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean"), x, y
    yield "pairwise_distance", lambda a, b: F.pairwise_distance(a, b), x, y


def attentions() -> Iterator[Case]:
    """Attention and embeddings."""
    q, k, v = real(2, 3, 5, 8), real(2, 3, 7, 8), real(2, 3, 7, 8)
    attend = F.scaled_dot_product_attention
    yield "sdpa", lambda a, b, c: attend(a, b, c), q, k, v
    yield "sdpa causal", lambda a, b, c: attend(a, b, c, is_causal=True), q, k, v
    yield "sdpa float mask", lambda a, b, c, m: attend(a, b, c, m), q, k, v, real(5, 7)
    yield "sdpa bool mask", lambda a, b, c, m: attend(a, b, c, m), q, k, v, flags(2, 1, 5, 7) | torch.eye(5, 7).bool()
    yield "sdpa scale", lambda a, b, c: attend(a, b, c, scale=0.5), q, k, v
    yield "sdpa of rank 3", lambda a, b, c: attend(a, b, c), q[0], k[0], v[0]
    yield "sdpa of rank 2", lambda a, b, c: attend(a, b, c), q[0, 0], k[0, 0], v[0, 0]
    yield "sdpa grouped", lambda a, b, c: attend(a, b, c, enable_gqa=True), real(1, 4, 5, 8), real(1, 2, 7, 8), real(1, 2, 7, 8)
    yield "MultiheadAttention", Attention(), real(2, 5, 8)
    yield "TransformerEncoderLayer", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), real(2, 5, 8)
    yield "TransformerDecoderLayer", nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), real(2, 5, 8), real(2, 6, 8)
    yield "Embedding", nn.Embedding(7, 4), whole(2, 3, low=0, high=7)
    yield "Embedding padding", nn.Embedding(7, 4, padding_idx=0), whole(3, low=0, high=7)
    yield "EmbeddingBag mean", nn.EmbeddingBag(7, 4, mode="mean"), whole(2, 3, low=0, high=7)
    yield "EmbeddingBag sum", nn.EmbeddingBag(7, 4, mode="sum"), whole(2, 3, low=0, high=7)


class Attention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        found: tuple[Tensor, Tensor | None] = self.attention(x, x, x)
        return found


def recurrences() -> Iterator[Case]:
    """Recurrent layers over short sequences."""
    x = real(4, 2, 3)
    yield "LSTM", nn.LSTM(3, 5), x
    yield "LSTM batch first of two layers", nn.LSTM(3, 5, 2, batch_first=True), x
    yield "LSTM bidirectional", nn.LSTM(3, 5, bidirectional=True), x
    yield "LSTM with states", nn.LSTM(3, 5), x, (real(1, 2, 5), real(1, 2, 5))
    yield "LSTM without bias", nn.LSTM(3, 5, bias=False), x
    yield "LSTM projected", nn.LSTM(3, 5, proj_size=4), x
    yield "GRU", nn.GRU(3, 5), x
    yield "GRU of two layers bidirectional", nn.GRU(3, 5, 2, bidirectional=True), x
    yield "RNN", nn.RNN(3, 5), x
    yield "RNN relu", nn.RNN(3, 5, nonlinearity="relu"), x
    yield "LSTMCell", nn.LSTMCell(3, 5), real(2, 3)
    yield "GRUCell", nn.GRUCell(3, 5), real(2, 3)
    yield "RNNCell", nn.RNNCell(3, 5), real(2, 3)


def halves() -> Iterator[Case]:
    """Other floating dtypes."""
    for dtype in (torch.float16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        yield f"Conv2d {name}", nn.Conv2d(3, 4, 3).to(dtype), real(1, 3, 6, 7).to(dtype)
        yield f"Linear {name}", nn.Linear(6, 5).to(dtype), real(3, 6).to(dtype)
        yield f"softmax {name}", nn.Softmax(-1), real(3, 6).to(dtype)
        yield f"LayerNorm {name}", nn.LayerNorm(6).to(dtype), real(3, 6).to(dtype)
        yield f"mul number {name}", lambda x: x * 0.5 + 1, real(3, 6).to(dtype)
        yield f"Softsign {name}", nn.Softsign(), real(3, 6).to(dtype)
        yield f"interpolate bilinear {name}", lambda x: F.interpolate(x, (5, 9), mode="bilinear"), real(1, 2, 4, 6).to(dtype)
        yield f"AvgPool2d {name}", nn.AvgPool2d(3, 2, 1), real(1, 2, 7, 9).to(dtype)
