"""Random nets of legal layers, up to thirty deep: odd sizes, strides, groups and paddings, branches that meet again, gates.

Every step is run on a small image as the net is drawn, so that what meets fits; a step that does not is drawn anew.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = tuple[str, tuple[int, ...], Any]
DEEPEST = 30
LARGEST = 4096
"""Elements of a channel's map, all images together; a larger one is pooled."""
ACTIVATIONS: Sequence[Callable[[], nn.Module]] = (
    nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Mish,
    nn.Softplus, nn.PReLU, nn.Identity, lambda: nn.LeakyReLU(0.1),
)  # fmt: skip


class RandomNet(nn.Module):
    """Runs steps over a list of values; the last one is the output, and with `two` the one before it too."""

    def __init__(self, image: Tensor, *, two: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.two = two
        self._seen = [image.double()]

    def add(self, kind: str, reads: tuple[int, ...], extra: Any = None) -> bool:
        """Adds a step; False where it gives nothing that a net could go on with."""
        layer = extra if isinstance(extra, nn.Module) else None
        if layer is not None:
            self.layers.append(_randomised(layer).double().eval())
            extra = len(self.layers) - 1
        try:
            with torch.no_grad():
                found = STEPS[kind](self, [self._seen[index] for index in reads], extra)
        except (RuntimeError, IndexError, ValueError):
            found = None
        if found is None or not found.numel() or not bool(found.isfinite().all()) or float(found.abs().max()) > 1e6:
            if layer is not None:
                del self.layers[-1]
            return False
        self.steps.append((kind, reads, extra))
        self._seen.append(found)
        return True

    def shape(self, index: int) -> tuple[int, ...]:
        """Of a value on the image that the net was drawn on."""
        return tuple(self._seen[index].shape)

    def area(self, index: int) -> int:
        """Elements of a channel's map of a value, all images together."""
        n, _, h, w = self.shape(index)
        return n * h * w

    def __len__(self) -> int:
        return len(self._seen)

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for kind, reads, extra in self.steps:
            values.append(STEPS[kind](self, [values[index] for index in reads], extra))
        return (values[-1], values[-2]) if self.two else values[-1]

    def extra_repr(self) -> str:
        return "; ".join(f"%{number + 1} = {kind}{reads} {extra}" for number, (kind, reads, extra) in enumerate(self.steps))


def _shuffled(y: Tensor, groups: int) -> Tensor:
    n, c, h, w = y.shape
    return y.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


STEPS: dict[str, Callable[[RandomNet, list[Tensor], Any], Tensor]] = {
    "layer": lambda m, given, extra: m.layers[extra](given[0]),
    "last": lambda m, given, extra: m.layers[extra](given[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "gate": lambda m, given, extra: given[0] * m.layers[extra](given[0]),
    "residual": lambda m, given, extra: given[0] + m.layers[extra](given[0]),
    "branches": lambda m, given, extra: sum(branch(given[0]) for branch in m.layers[extra]),
    "add": lambda m, given, extra: given[0] + given[1],
    "sub": lambda m, given, extra: given[0] - given[1],
    "mul": lambda m, given, extra: given[0] * torch.tanh(given[1]),
    "cat": lambda m, given, extra: torch.cat(given, 1),
    "scale": lambda m, given, extra: given[0] * extra,
    "halves": lambda m, given, extra: torch.cat(given[0].chunk(2, 1)[::-1], 1),
    "split": lambda m, given, extra: given[0][:, extra:] * 0.5 + given[0][:, :-extra],
    "shuffle": lambda m, given, extra: _shuffled(given[0], extra),
    "pixels": lambda m, given, extra: F.pixel_shuffle(given[0], 2),
    "unpixels": lambda m, given, extra: F.pixel_unshuffle(given[0], 2),
    "pad": lambda m, given, extra: F.pad(given[0], extra[0], mode=extra[1]),
    "crop": lambda m, given, extra: given[0][:, :, extra[0] :, : -extra[1]],
    "resize": lambda m, given, extra: F.interpolate(given[0], **extra),
}
"""What each kind of step does."""


def random_net(seed: int) -> tuple[RandomNet, Tensor]:
    """A net in evaluation mode, in float64, and an image for it: the same for the same seed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    image = torch.randn(draw.choice([1, 1, 2, 3]), draw.choice([1, 3, 4, 8]), draw.randint(7, 24), draw.randint(7, 24))
    net = RandomNet(image, two=draw.random() < 0.1)
    depth = draw.randint(2, DEEPEST)
    for _ in range(20 * depth):
        if len(net.steps) == depth:
            break
        index = len(net) - 1 if draw.random() < 0.7 else draw.randrange(max(0, len(net) - 4), len(net))
        DRAWS[draw.choice(KINDS)](draw, net, index)
    if draw.random() < 0.3:
        _head(draw, net)
    return net.eval(), image.double()


def _conv(draw: random.Random, into: int, out: int, *, stride: int = 1) -> nn.Module:
    size = draw.choice([1, 1, 3, 3, 3, 5, 2, 7, (1, 3), (3, 1)])
    groups = draw.choice([g for g in (1, 1, 2, 4, into) if into % g == 0 and out % g == 0])
    dilation = draw.choice([1, 1, 1, 2])
    spans = [dilation * (k - 1) for k in (size if isinstance(size, tuple) else (size, size))]
    padding: Any = tuple(span // 2 if draw.random() < 0.8 else draw.randint(0, span) for span in spans)
    if (stride, dilation) == (1, 1) and draw.random() < 0.15:  # ONNX Runtime runs no other of the exporter's files
        padding = "same"
    mode = draw.choice(["zeros"] * 8 + ["reflect", "replicate", "circular"])
    return nn.Conv2d(into, out, size, stride, padding, dilation, groups, draw.random() < 0.5, mode)


def _convs(draw: random.Random, net: RandomNet, index: int) -> None:
    into, out, stride = net.shape(index)[1], draw.choice([4, 8, 12, 16, net.shape(index)[1]]), draw.choice([1, 1, 1, 2])
    layers = [_conv(draw, into, out, stride=stride)]
    layers += [nn.BatchNorm2d(out)] if draw.random() < 0.6 else []
    layers += [draw.choice(ACTIVATIONS)()] if draw.random() < 0.6 else []
    net.add("layer", (index,), nn.Sequential(*layers))


def _branches(draw: random.Random, net: RandomNet, index: int) -> None:
    """A block in training form: branches of conv and norm, one of a norm alone where it fits."""
    into, stride = net.shape(index)[1], draw.choice([1, 1, 1, 2])
    out = draw.choice([into, into, 8])
    made: list[nn.Module] = []
    for size in draw.sample([1, 3, 3, 5], draw.randint(1, 3)):
        groups = draw.choice([g for g in (1, 1, 2) if into % g == 0 and out % g == 0])
        made.append(nn.Sequential(nn.Conv2d(into, out, size, stride, size // 2, 1, groups, bias=False), nn.BatchNorm2d(out)))
    if out == into and stride == 1:
        made.append(draw.choice([nn.BatchNorm2d(into), nn.Identity()]))
    net.add("branches", (index,), nn.ModuleList(made))


def _meet(draw: random.Random, net: RandomNet, index: int) -> None:
    """Two values of one size; for a concat of any width."""
    shape, kind = net.shape(index), draw.choice(["add", "add", "sub", "mul", "cat", "cat"])
    alike = [i for i in range(len(net)) if i != index and _meets(shape, net.shape(i), concat=kind == "cat")]
    if alike:
        other = draw.choice(alike)
        if kind != "cat" or shape[1] + net.shape(other)[1] <= 48:
            net.add(kind, (index, other))


def _meets(one: tuple[int, ...], other: tuple[int, ...], *, concat: bool) -> bool:
    return (one[0], *one[2:]) == (other[0], *other[2:]) and (concat or one[1] == other[1])


def _layer(draw: random.Random, net: RandomNet, index: int) -> None:
    c = net.shape(index)[1]
    net.add("layer", (index,), draw.choice([
        draw.choice(ACTIVATIONS)(), draw.choice(ACTIVATIONS)(), nn.BatchNorm2d(c), nn.BatchNorm2d(c), nn.Dropout(0.3),
        nn.GroupNorm(draw.choice([g for g in (1, 2, 4) if c % g == 0]), c), nn.InstanceNorm2d(c, affine=draw.random() < 0.5),
        nn.MaxPool2d(draw.choice([2, 3]), draw.choice([1, 2]), draw.choice([0, 1]), ceil_mode=draw.random() < 0.3),
        nn.AvgPool2d(draw.choice([2, 3]), draw.choice([1, 2]), draw.choice([0, 1]), draw.random() < 0.3, draw.random() < 0.5),
        nn.AdaptiveAvgPool2d(draw.choice([1, 3, (2, 5)])), nn.Softmax(1),
        nn.ConvTranspose2d(c, draw.choice([c, 6]), draw.choice([2, 3, 4]), 2, draw.choice([0, 1]), draw.choice([0, 1])),
    ]))  # fmt: skip


def _moved(draw: random.Random, net: RandomNet, index: int) -> None:
    c, (h, w) = net.shape(index)[1], net.shape(index)[2:]
    kind, extra = draw.choice([
        ("scale", draw.choice([0.5, -1.0, 2.0])), ("halves", None), ("split", 1), ("shuffle", draw.choice([2, 4])),
        ("pixels", None), ("unpixels", None),
        ("pad", ([draw.randint(0, 2) for _ in range(4)], draw.choice(["constant", "reflect", "replicate"]))),
        ("crop", (draw.randint(0, h // 2), draw.randint(1, max(1, w // 2)))),
        ("resize", {"scale_factor": 2, "mode": "nearest"}),
        ("resize", {"size": (draw.randint(3, 16), 9), "mode": "bilinear", "align_corners": draw.random() < 0.5}),
        ("last", nn.Linear(c, draw.choice([c, 5]))), ("last", nn.LayerNorm(c)),
        ("gate", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), nn.Sigmoid())),
        ("residual", nn.Sequential(nn.Conv2d(c, 2 * c, 1), nn.BatchNorm2d(2 * c), nn.ReLU(), nn.Conv2d(2 * c, c, 3, 1, 1))),
    ])  # fmt: skip
    net.add(kind, (index,), extra)
    if net.area(-1) > LARGEST:
        net.add("layer", (len(net) - 1,), nn.AvgPool2d(4))


def _head(draw: random.Random, net: RandomNet) -> None:
    c = net.shape(-1)[1]
    net.add("layer", (len(net) - 1,), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, draw.choice([2, 10]))))


DRAWS: dict[str, Callable[[random.Random, RandomNet, int], None]] = {
    "convs": _convs,
    "branches": _branches,
    "meet": _meet,
    "layer": _layer,
    "moved": _moved,
}
KINDS = (*["convs"] * 5, *["branches"] * 3, *["meet"] * 3, *["layer"] * 4, *["moved"] * 3)


def _randomised(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
                module.weight.normal_(1.0, 0.5)
                module.bias.normal_()
    return layer
