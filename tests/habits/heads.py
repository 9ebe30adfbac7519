"""What stands behind convs: attention, recurrent layers, heads."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.habits.parts import SIZE, WIDTH, habit

HEADS = 4


def _tokens(m: Any, x: Tensor) -> Tensor:
    return m.features(x).flatten(2).transpose(1, 2)


def _attention() -> dict[str, nn.Module]:
    return {"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)}


@habit(parts=_attention)
def attention_by_softmax(m: Any, x: Tensor) -> Any:
    """Attention by matmul and softmax, from one qkv (timm, not fused)."""
    y = _tokens(m, x)
    b, n, c = y.shape
    q, k, v = m.qkv(y).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
    weights = ((q * (c // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
    return m.fc(m.proj((weights @ v).transpose(1, 2).reshape(b, n, c)).mean(1))


@habit(parts=_attention)
def attention_by_sdpa(m: Any, x: Tensor) -> Any:
    """Attention by F.scaled_dot_product_attention."""
    y = _tokens(m, x)
    b, n, c = y.shape
    q, k, v = (part.view(b, n, HEADS, -1).transpose(1, 2) for part in m.qkv(y).chunk(3, dim=-1))
    return m.fc(m.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)).mean(1))


@habit(parts=_attention)
def attention_by_einsum(m: Any, x: Tensor) -> Any:
    """Attention by einsum."""
    y = _tokens(m, x)
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in m.qkv(y).split(WIDTH, dim=-1))
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(0.5).softmax(-1)
    return m.fc(m.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)).mean(1))


@habit(parts=lambda: {"attention": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)})
def attention_module(m: Any, x: Tensor) -> Any:
    """nn.MultiheadAttention, batch first."""
    y = _tokens(m, x)
    return m.fc((y + m.attention(y, y, y, need_weights=False)[0]).mean(1))


@habit(parts=lambda: {"layer": nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True)})
def encoder_layer(m: Any, x: Tensor) -> Any:
    """nn.TransformerEncoderLayer behind a conv stem."""
    return m.fc(m.layer(_tokens(m, x)).mean(1))


@habit(parts=lambda: {"q": nn.Linear(WIDTH, WIDTH), "kv": nn.Linear(WIDTH, 2 * WIDTH // HEADS * 2)})
def grouped_query_attention(m: Any, x: Tensor) -> Any:
    """GQA: fewer heads of keys and values, repeated."""
    y = _tokens(m, x)
    b, n, c = y.shape
    q = m.q(y).view(b, n, HEADS, -1).transpose(1, 2)
    k, v = (part.view(b, n, 2, -1).transpose(1, 2).repeat_interleave(HEADS // 2, dim=1) for part in m.kv(y).chunk(2, -1))
    return m.fc(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c).mean(1))


@habit(parts=lambda: {"qkv": nn.Conv2d(WIDTH, 3 * WIDTH, 1)})
def attention_over_channels(m: Any, x: Tensor) -> Any:
    """Attention of conv features, normalised, over channels (Restormer)."""
    b, c, h, w = x.shape[0], WIDTH, x.shape[2], x.shape[3]
    q, k, v = (part.view(b, HEADS, c // HEADS, h * w) for part in m.qkv(m.features(x)).chunk(3, dim=1))
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(dim=-1)
    return m.c((weights @ v).reshape(b, c, h, w))


@habit(
    parts=lambda: {
        **_attention(),
        "cls": nn.Parameter(torch.randn(1, 1, WIDTH)),
        "pos": nn.Parameter(torch.randn(1, 49, WIDTH)),
    }
)
def class_token(m: Any, x: Tensor) -> Any:
    """A class token, expanded and concatenated, and positions added."""
    y = _tokens(m, x)
    y = torch.cat([m.cls.expand(y.shape[0], -1, -1), y], dim=1) + m.pos
    q, k, v = m.qkv(y).chunk(3, -1)
    return m.fc(m.proj(F.scaled_dot_product_attention(q, k, v))[:, 0])


@habit(parts=lambda: {"gate": nn.Conv2d(WIDTH, 1, 1)})
def softmax_over_positions(m: Any, x: Tensor) -> Any:
    """GCNet: softmax over positions, and a matmul of features with it."""
    y = m.features(x)
    context = torch.matmul(y.flatten(2), m.gate(y).flatten(2).softmax(-1).transpose(1, 2))
    return m.c(y + context.unsqueeze(-1))


@habit(parts=lambda: {"rnn": nn.LSTM(WIDTH, 10, batch_first=True, bidirectional=True), "out": nn.Linear(20, 7)})
def lstm_behind_convs(m: Any, x: Tensor) -> Any:
    """CRNN: rows pooled away, a bidirectional LSTM over columns."""
    y = m.features(x).mean(2).permute(0, 2, 1)
    return m.out(m.rnn(y)[0])


@habit(parts=lambda: {"rnn": nn.GRU(WIDTH * SIZE[0], 10), "out": nn.Linear(10, 7)})
def gru_behind_convs(m: Any, x: Tensor) -> Any:
    """A GRU over columns of channels and rows, batch second."""
    n, _, _, w = x.shape
    y = m.features(x).permute(3, 0, 1, 2).reshape(w, n, -1)
    found, _ = m.rnn(y)
    return m.out(found[-1])


@habit(parts=lambda: {"up": nn.PixelShuffle(2)})
def pixel_shuffle(m: Any, x: Tensor) -> Any:
    """nn.PixelShuffle behind a conv (super-resolution)."""
    return m.up(m.c(m.features(x)))


@habit(
    parts=lambda: {
        "s": nn.Conv2d(WIDTH, 8, 1),
        "ns": nn.BatchNorm2d(8),
        "h": nn.Conv2d(8, WIDTH, 1),
        "w": nn.Conv2d(8, WIDTH, 1),
    }
)
def coordinate_attention(m: Any, x: Tensor) -> Any:
    """CoordAtt: pooled by rows and by columns, concatenated, split."""
    y = m.features(x)
    _, _, h, w = y.size()
    rows, columns = y.mean(3, keepdim=True), y.mean(2, keepdim=True).permute(0, 1, 3, 2)
    joined = F.hardswish(m.ns(m.s(torch.cat([rows, columns], dim=2))))
    by_rows, by_columns = torch.split(joined, [h, w], dim=2)
    return m.c(y * m.h(by_rows).sigmoid() * m.w(by_columns.permute(0, 1, 3, 2)).sigmoid())


@habit(parts=lambda: {"spatial": nn.Conv2d(2, 1, 3, padding=1)})
def spatial_attention(m: Any, x: Tensor) -> Any:
    """CBAM: y.max(1)[0] and the mean over channels."""
    y = m.features(x)
    gate = m.spatial(torch.cat([y.max(1, keepdim=True)[0], y.mean(1, keepdim=True)], 1)).sigmoid()
    return m.c(y * gate)


@habit()
def maximum_of_classes(m: Any, x: Tensor) -> Any:
    """scores, classes = y.max(1)."""
    scores, classes = m.c(m.features(x)).max(1)
    return scores, classes


@habit()
def top_k(m: Any, x: Tensor) -> Any:
    """topk of the scores, gathered."""
    y = m.c(m.features(x)).flatten(2)
    index = y.amax(1).topk(3, dim=1).indices
    return y.gather(2, index.unsqueeze(1).expand(-1, y.shape[1], -1))


@habit(parts=lambda: {"focus": nn.Conv2d(12, WIDTH, 3, padding=1, bias=False), "nf": nn.BatchNorm2d(WIDTH)})
def focus(m: Any, x: Tensor) -> Any:
    """YOLOv5's Focus: four strided slices, concatenated."""
    y = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    return m.c(m.body(m.nf(m.focus(y)).relu()))


@habit(parts=lambda: {"merge": nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False), "nf": nn.BatchNorm2d(WIDTH)})
def space_to_depth(m: Any, x: Tensor) -> Any:
    """Space to depth by view and permute (TResNet)."""
    y = m.stem(x)
    n, c, h, w = y.size()
    y = y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous().view(n, c * 4, h // 2, w // 2)
    return m.c(m.body(m.nf(m.merge(y)).relu()))


@habit(parts=lambda: {"box": nn.Conv2d(WIDTH, 16, 1), "dfl": nn.Conv2d(4, 1, 1, bias=False).requires_grad_(False)})
def distribution_focal_head(m: Any, x: Tensor) -> Any:
    """YOLOv8's DFL: bins softmaxed and weighted by a fixed conv."""
    y = m.box(m.features(x)).flatten(2)
    b, _, a = y.shape
    return m.dfl(y.view(b, 4, 4, a).transpose(2, 1).softmax(1)).view(b, 4, a)


@habit(
    parts=lambda: {"heads": nn.Conv2d(WIDTH, 2 * 7, 1), "anchors": nn.Parameter(torch.rand(1, 2, 1, 1, 2), requires_grad=False)}
)
def anchors(m: Any, x: Tensor) -> Any:
    """YOLOv5's head: anchors, a grid and a view into boxes."""
    y = m.heads(m.features(x))
    b, _, h, w = y.shape
    y = y.view(b, 2, 7, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    xy = (y[..., 0:2] * 2 + torch.stack((columns, rows), 2).float()) * 8
    return torch.cat((xy, (y[..., 2:4] * 2) ** 2 * m.anchors, y[..., 4:]), 4).view(b, -1, 7)


@habit(parts=lambda: {"d": nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1), "nd": nn.BatchNorm2d(WIDTH)})
def upsampled_and_joined(m: Any, x: Tensor) -> Any:
    """U-Net: upsampled, concatenated with a skip, convolved."""
    y = m.stem(x)
    up = F.interpolate(m.body(F.max_pool2d(y, 2)), scale_factor=2, mode="nearest")
    return m.c(m.nd(m.d(torch.cat([y, up], dim=1))).relu())


@habit(parts=lambda: {"g": nn.Conv2d(WIDTH, WIDTH, 1), "d": nn.Conv2d(2 * WIDTH, WIDTH, 1)})
def pyramid_pooling(m: Any, x: Tensor) -> Any:
    """ASPP's image pooling, resized back and joined."""
    y = m.features(x)
    pooled = F.interpolate(m.g(F.adaptive_avg_pool2d(y, 1)).relu(), size=y.shape[2:], mode="bilinear")
    return m.c(m.d(torch.cat([y, pooled], 1)))


@habit(
    parts=lambda: {
        "dw": nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        "nd": nn.BatchNorm2d(8),
        "primary": nn.Conv2d(WIDTH, 8, 1),
    }
)
def ghost_module(m: Any, x: Tensor) -> Any:
    """GhostNet: half of the channels made cheaply from the other half."""
    y = m.primary(m.stem(x)).relu()
    return m.c(m.body(torch.cat([y, m.nd(m.dw(y)).relu()], dim=1)[:, :WIDTH]))


@habit()
def narrowed(m: Any, x: Tensor) -> Any:
    """narrow() and roll of channels."""
    y = m.stem(x)
    return m.c(m.body(torch.cat([y.narrow(1, 8, 8), y.narrow(1, 0, 8)], 1)) + y.roll(1, 3))


@habit(parts=lambda: {"p": nn.Parameter(torch.ones(1) * 3)})
def generalised_mean(m: Any, x: Tensor) -> Any:
    """GeM pooling."""
    y = m.features(x).clamp(min=1e-6)
    return m.fc(F.avg_pool2d(y.pow(m.p), (y.size(-2), y.size(-1))).pow(1.0 / m.p).flatten(1))


@habit()
def pool_with_ceil_mode(m: Any, x: Tensor) -> Any:
    """MaxPool2d(ceil_mode=True) and flatten."""
    return m.c(m.body(F.max_pool2d(m.stem(x), 3, 2, ceil_mode=True)))


@habit(parts=lambda: {"pool": nn.AvgPool2d(3, 1, 1)})
def pool_as_mixer(m: Any, x: Tensor) -> Any:
    """PoolFormer: pool(y) - y with a layer scale of 0-d."""
    y = m.stem(x)
    return m.c(m.body(y + (m.pool(y) - y) * 0.3))


@habit()
def normalised_embedding(m: Any, x: Tensor) -> Any:
    """An embedding of length 1: F.normalize, and cosine to weights."""
    y = m.features(x).mean((2, 3))
    return F.normalize(y, dim=1) @ F.normalize(m.fc.weight, dim=1).t()
