"""Small torch models, each with an op that couples channels in a way of its own, for tests of pruning through every frontend.

All take an image of 3 x 8 x 6 and give five numbers. Sizes are computed as people compute them: some from `x.shape`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = (8, 6)
CLASSES = 5


class Model(nn.Module):
    """A stem of 12 channels, a middle that each model has for itself, and a head that reads `out` channels."""

    out = 12

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.make()
        self.head = nn.Linear(self.out, CLASSES)

    def make(self) -> None:
        """The layers of the middle."""

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class Tokens(Model):
    """The same for `N tokens channels`; the head reads the mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class Resized(Model):
    def make(self) -> None:
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def middle(self, x: Tensor) -> Tensor:
        y = F.interpolate(F.avg_pool2d(x, 2), size=SIZE, mode="bilinear", align_corners=False)
        return F.avg_pool2d(self.up(x), 2) * torch.sigmoid(y)


class SplitAttention(Model):
    """Two branches, weighed by a softmax over the branches (ResNeSt, SK)."""

    def make(self) -> None:
        self.a, self.b = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(12, 10, 1)
        self.squeeze, self.expand = nn.Conv2d(10, 7, 1), nn.Conv2d(7, 20, 1)

    out = 10

    def middle(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], dim=1)
        weights = self.expand(torch.relu(self.squeeze(both.sum(1).mean((2, 3), keepdim=True))))
        return (both * torch.softmax(weights.view(-1, 2, 10, 1, 1), dim=1)).sum(dim=1)


class LayerNormed(Tokens):
    def make(self) -> None:
        self.norm = nn.LayerNorm(12)
        self.inner, self.outer = nn.Linear(12, 20), nn.Linear(20, 12)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.outer(F.gelu(self.inner(self.norm(x))))


class ChannelsFirstNorm(Model):
    def make(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.rand(12) + 0.5), nn.Parameter(torch.randn(12))

    def middle(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (12,), self.weight, self.bias, 1e-6).permute(0, 3, 1, 2).sigmoid()


class GroupNormed(Model):
    def make(self) -> None:
        self.one, self.three = nn.GroupNorm(1, 12), nn.GroupNorm(3, 12)
        self.conv = nn.Conv2d(12, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.three(self.conv(torch.relu(self.one(x)))))


class InstanceNormed(Model):
    def make(self) -> None:
        self.norm = nn.InstanceNorm2d(12, affine=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x).relu()


class ResponseNormed(Model):
    """ConvNeXt v2's GRN: a norm over space, divided by its mean over channels."""

    def make(self) -> None:
        self.inner, self.outer = nn.Linear(12, 20), nn.Linear(20, 12)
        self.scale = nn.Parameter(torch.randn(20))

    def middle(self, x: Tensor) -> Tensor:
        y = F.gelu(self.inner(x.permute(0, 2, 3, 1)))
        size = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
        y = y + y * self.scale * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))
        return x + self.outer(y).permute(0, 3, 1, 2)


class SpatialAttention(Model):
    """CBAM's: mean and maximum over channels."""

    def make(self) -> None:
        self.gate = nn.Conv2d(2, 1, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.gate(seen))


class FusedAttention(Tokens):
    """Heads from one linear layer, sizes from `x.shape`, a class token, a position embedding."""

    def make(self) -> None:
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 1 + SIZE[0] * SIZE[1], 12))

    def middle(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c))


class PlainAttention(Tokens):
    """Three linear layers, products and a softmax, with a scale that was computed when the model was built."""

    def make(self) -> None:
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(12, 20)
        self.bias = nn.Parameter(torch.randn(2, 48, 48))
        self.scale = 8**-0.5

    out = 20

    def middle(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 48, 2, w).transpose(1, 2) for layer, w in ((self.q, 8), (self.k, 8), (self.v, 10)))
        weights = ((q * self.scale) @ k.transpose(-2, -1) + self.bias).softmax(-1)
        return torch.matmul(weights, v).transpose(1, 2).flatten(2)


class CrossCovariance(Tokens):
    """XCiT's attention over channels: the width of a head cannot go, whole heads can."""

    def make(self) -> None:
        self.qkv = nn.Linear(12, 72)
        self.temperature = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    out = 24

    def middle(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(-1, 48, 3, 4, 6).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return (weights @ v).permute(0, 3, 1, 2).flatten(2)


class Contracted(Tokens):
    def make(self) -> None:
        self.q, self.k, self.v = nn.Linear(12, 14), nn.Linear(12, 14), nn.Linear(12, 18)

    out = 18

    def middle(self, x: Tensor) -> Tensor:
        weights = torch.softmax(torch.einsum("nic,njc->nij", self.q(x), self.k(x)), dim=-1)
        return torch.bmm(weights, self.v(x))


class Shifted(Model):
    """Swin's windows: rolled, cut into windows, attended to by a linear layer, put back."""

    def make(self) -> None:
        self.mix = nn.Linear(12, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2))
        x = x.view(-1, 2, 4, 2, 3, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 12, 12)
        x = self.mix(x).view(-1, 2, 2, 4, 3, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 8, 6, 12)
        return torch.roll(x, (1, 1), (1, 2)).permute(0, 3, 1, 2).flip(2)


class PixelShuffled(Model):
    def make(self) -> None:
        self.wide, self.narrow = nn.Conv2d(12, 32, 1), nn.Conv2d(32, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.narrow(F.pixel_unshuffle(torch.sigmoid(F.pixel_shuffle(self.wide(x), 2)), 2))


class ChannelShuffled(Model):
    """A shuffle in three spellings, with a conv between them."""

    def make(self) -> None:
        self.shuffle = nn.ChannelShuffle(3)
        self.first, self.second = nn.Conv2d(12, 12, 3, padding=1, groups=2), nn.Conv2d(12, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        y = self.first(self.shuffle(x)).view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.second(y).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)


class Gated(Model):
    """GLU, as a function and as two chunks."""

    def make(self) -> None:
        self.wide, self.again = nn.Conv2d(12, 20, 1), nn.Conv2d(10, 16, 1)

    out = 8

    def middle(self, x: Tensor) -> Tensor:
        a, b = self.again(F.glu(self.wide(x), dim=1)).chunk(2, dim=1)
        return a * torch.sigmoid(b)


class Transposed(Model):
    """Transposed convs: plain, depthwise, grouped."""

    def make(self) -> None:
        self.plain = nn.ConvTranspose2d(12, 10, 3, stride=2, padding=1)
        self.depthwise = nn.ConvTranspose2d(10, 10, 2, stride=2, groups=10)
        self.grouped = nn.ConvTranspose2d(10, 16, 3, groups=2)

    out = 16

    def middle(self, x: Tensor) -> Tensor:
        return self.grouped(self.depthwise(torch.relu(self.plain(x))))


class Expanded(Model):
    """A value with one position, or one channel, repeated to the shape of another."""

    def make(self) -> None:
        self.key = nn.Conv2d(12, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        context = self.key(x).mean((2, 3), keepdim=True)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-6)
        return (x / length.expand_as(x)) * context.expand(-1, -1, *SIZE)


class ReshapedAs(Model):
    """LeViT's: a batch norm over flattened tokens."""

    def make(self) -> None:
        self.linear, self.norm = nn.Linear(12, 16), nn.BatchNorm1d(16)

    out = 16

    def middle(self, x: Tensor) -> Tensor:
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        tokens = self.norm(tokens.flatten(0, 1)).reshape_as(tokens)
        return tokens.transpose(1, 2).reshape(-1, 16, *SIZE)


class Elementwise(Model):
    """Functions of elements that only pruning knows, with per-channel constants."""

    def make(self) -> None:
        self.slope, self.power = nn.PReLU(12), nn.Parameter(torch.rand(12, 1, 1) + 1)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.pow(self.slope(x).abs() + 0.1, self.power)
        return torch.where(x > 0.5, x.rsqrt(), torch.erf(x)).cumsum(2)


class Indexed(Model):
    """One column, some rows, by number."""

    def middle(self, x: Tensor) -> Tensor:
        return x[:, :, 1:].select(3, 0).unsqueeze(3) * x.index_select(2, torch.tensor([0, 2, 5])).mean(2, keepdim=True)


class Repeated(Model):
    def make(self) -> None:
        self.conv = nn.Conv2d(24, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat(1, 2, 1, 1)) + x.repeat_interleave(2, dim=2)[:, :, ::2]


class Standardised(Model):
    """Weight standardisation: a kernel that is computed from a parameter."""

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(14, 12, 3, 3))
        self.last = nn.Conv2d(14, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return self.last(torch.relu(F.conv2d(x, w, padding=1)))


class PaddedBySize(Model):
    """Padding by what is missing to a multiple (Swin)."""

    def make(self) -> None:
        self.conv = nn.Conv2d(12, 12, 4, stride=4)

    def middle(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        return self.conv(F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4)))


class TiedDecoder(Model):
    """One weight for a conv and a transposed one."""

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(9, 12, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(torch.relu(F.conv2d(x, self.weight)), self.weight)


class GroupedQueries(Tokens):
    """Two keys for four heads, repeated."""

    out = 24

    def make(self) -> None:
        self.q, self.kv = nn.Linear(12, 24), nn.Linear(12, 24)

    def middle(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, 6).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = (value.repeat_interleave(2, dim=1) for value in (k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Shared(Model):
    """One layer, twice."""

    def make(self) -> None:
        self.twice = nn.Conv2d(12, 12, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.twice(torch.relu(self.twice(x)))


class SqueezeExcited(Model):
    def make(self) -> None:
        self.down, self.up = nn.Linear(12, 6), nn.Linear(6, 12)

    def middle(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3)))))).view(n, c, 1, 1)


class StridedSlices(Model):
    def make(self) -> None:
        self.even, self.odd = nn.Conv2d(6, 9, 1), nn.Conv2d(6, 9, 1)

    out = 9

    def middle(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.even(x[:, ::2])) * self.odd(x[:, 1::2])


MODELS: tuple[Callable[[], Model], ...] = (
    Resized, SplitAttention, LayerNormed, ChannelsFirstNorm, GroupNormed, InstanceNormed, ResponseNormed,
    SpatialAttention, FusedAttention, PlainAttention, CrossCovariance, Contracted, Shifted, PixelShuffled,
    ChannelShuffled, Gated, Transposed, Expanded, ReshapedAs, Elementwise, Indexed, Repeated, Standardised,
    PaddedBySize, TiedDecoder, GroupedQueries, Shared, SqueezeExcited, StridedSlices,
)  # fmt: skip


@torch.no_grad()
def build(make: Callable[[], Model], seed: int = 0) -> tuple[Model, Tensor]:
    """A model in evaluation mode with random weights, norms away from their defaults, and an image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.LayerNorm | nn.GroupNorm | nn.InstanceNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape))
                module.bias.copy_(torch.randn(module.bias.shape))
            if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape))
        return model, torch.randn(2, 3, *SIZE)
