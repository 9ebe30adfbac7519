"""Sizes, asked for in every way."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.habits.parts import SIZE, WIDTH, habit


@habit()
def view_by_size(m: Any, x: Tensor) -> Any:
    """y.view(y.size(0), -1)."""
    y = F.adaptive_avg_pool2d(m.features(x), 1)
    return m.fc(y.view(y.size(0), -1))


@habit()
def reshape_by_shape(m: Any, x: Tensor) -> Any:
    """y.reshape(y.shape[0], -1)."""
    y = F.adaptive_avg_pool2d(m.features(x), 1)
    return m.fc(y.reshape(y.shape[0], -1))


@habit()
def unpacked_shape(m: Any, x: Tensor) -> Any:
    """n, c, h, w = y.shape."""
    y = m.features(x)
    n, c, h, w = y.shape
    return m.fc(y.view(n, c, h * w).mean(2))


@habit()
def unpacked_size(m: Any, x: Tensor) -> Any:
    """b, c, _, _ = y.size(), as squeeze-and-excite has it."""
    y = m.stem(x)
    b, c, _, _ = y.size()
    gate = F.adaptive_avg_pool2d(y, 1).view(b, c)
    return m.c(m.body(y * gate.view(b, c, 1, 1).sigmoid().expand_as(y)))


@habit()
def interpolate_to_a_size(m: Any, x: Tensor) -> Any:
    """interpolate(size=y.shape[-2:]), as a feature pyramid has it."""
    y = m.stem(x)
    small = m.body(F.max_pool2d(y, 2))
    return m.c(y + F.interpolate(small, size=y.shape[-2:], mode="bilinear", align_corners=False))


@habit()
def pool_of_a_size(m: Any, x: Tensor) -> Any:
    """avg_pool2d(y, y.size()[2:]) for a global mean."""
    y = m.features(x)
    return m.fc(F.avg_pool2d(y, y.size()[2:]).flatten(1))


@habit()
def padded_to_a_multiple(m: Any, x: Tensor) -> Any:
    """Padding computed from the sizes, as TensorFlow's SAME is."""
    ih, iw = x.shape[-2:]
    pad_h, pad_w = max((-(-ih // 2) - 1) * 2 + 3 - ih, 0), max((-(-iw // 2) - 1) * 2 + 3 - iw, 0)
    y = F.pad(m.stem(x), [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])
    return m.c(m.nb(F.conv2d(y, m.b.weight, m.b.bias, stride=2)).relu())


@habit()
def zeros_of_the_batch(m: Any, x: Tensor) -> Any:
    """torch.zeros(x.shape[0], …, device=x.device), concatenated."""
    y = m.features(x)
    zeros = torch.zeros(y.shape[0], 1, y.shape[2], y.shape[3], device=y.device, dtype=y.dtype)
    return m.c(torch.cat([zeros, y], 1)[:, 1:])


@habit(parts=lambda: {"d": nn.Conv2d(WIDTH + 2, WIDTH, 3, padding=1), "nd": nn.BatchNorm2d(WIDTH)})
def coordinates(m: Any, x: Tensor) -> Any:
    """CoordConv: two channels of positions by linspace and meshgrid."""
    y = m.stem(x)
    n, _, h, w = y.shape
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    grid = torch.stack([rows, columns]).unsqueeze(0).expand(n, -1, -1, -1)
    return m.c(m.nd(m.d(torch.cat([y, grid], 1))).relu())


@habit()
def flatten_transpose(m: Any, x: Tensor) -> Any:
    """Tokens by flatten(2).transpose(1, 2), and their mean."""
    return m.fc(m.features(x).flatten(2).transpose(1, 2).mean(1))


@habit()
def unflatten(m: Any, x: Tensor) -> Any:
    """y.unflatten(1, (4, -1)) and back."""
    y = m.stem(x).unflatten(1, (4, -1))
    return m.c(m.body((y * 2).flatten(1, 2)))


@habit()
def length_of_a_tensor(m: Any, x: Tensor) -> Any:
    """len(x) as the size of the batch."""
    return m.fc(m.features(x).mean((2, 3)).view(len(x), -1))


@habit()
def channel_shuffle(m: Any, x: Tensor) -> Any:
    """ShuffleNet: view, transpose, contiguous, view, by sizes."""
    y = m.stem(x)
    n, c, h, w = y.shape
    y = y.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
    return m.c(m.body(y))


@habit()
def shape_of_the_input_later(m: Any, x: Tensor) -> Any:
    """The mask of a segmenter, resized to the input's size."""
    size = x.shape[2:]
    y = m.c(m.body(F.avg_pool2d(m.stem(x), 2)))
    return F.interpolate(y, size=size, mode="nearest")


@habit()
def sizes_as_floats(m: Any, x: Tensor) -> Any:
    """A scale computed from sizes: int(h * 0.5)."""
    y = m.stem(x)
    h, w = y.shape[2], y.shape[3]
    return m.c(m.body(F.interpolate(y, size=(int(h * 0.5), int(w * 1.5)))))


@habit(parts=lambda: {"fl": nn.Linear(WIDTH * SIZE[0] * SIZE[1], 6)})
def flatten_with_positions(m: Any, x: Tensor) -> Any:
    """A classifier over channels and positions: view(-1, C * H * W)."""
    return m.fl(m.features(x).view(-1, WIDTH * SIZE[0] * SIZE[1]))
