"""Random graphs of linear ops from one source, most of them near an exact region and some just beside one.

Every value carries `margin`, the outputs less the inputs along each axis where the stride is one, so that sums can be made to
fit; one in a few is left as it comes, and is then a near-miss that `fuse` must refuse.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Step = Callable[[list[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Value:
    """channels, stride and margin of a value in terms of the source; margin counts source positions."""

    channels: int
    stride: tuple[int, ...]
    margin: tuple[int, ...]


class RandomRegion(nn.Module):
    """Runs steps over a list of values; the last one is the output, through a ReLU."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.layers = nn.ModuleList()
        self.steps: list[tuple[str, tuple[int, ...], object]] = []
        self.text: list[str] = []

    def layer(self, module: nn.Module) -> int:
        self.layers.append(module)
        return len(self.layers) - 1

    def add_step(self, kind: str, reads: tuple[int, ...], extra: object = None) -> None:
        self.steps.append((kind, reads, extra))

    def forward(self, x: Tensor) -> Tensor:
        values = [torch.tanh(x)]
        for kind, reads, extra in self.steps:
            given = [values[i] for i in reads]
            values.append(self._step(kind, given, extra))
        return torch.relu(values[-1])

    def _step(self, kind: str, given: list[Tensor], extra: object) -> Tensor:
        match kind:
            case "layer":
                return self.layers[extra](given[0])
            case "add":
                return given[0] + given[1]
            case "add_":
                return given[0].clone().add_(given[1])
            case "sub":
                return torch.sub(given[0], given[1], alpha=extra)
            case "sum":
                return sum(given)
            case "cat":
                return torch.cat(given, dim=1)
            case "scale":
                return given[0] * extra
            case "divide":
                return given[0] / extra
            case "shift":
                return extra - given[0]
            case "pad":
                return F.pad(given[0], extra[0], value=extra[1])
            case _:
                return given[0]

    def extra_repr(self) -> str:
        return "; ".join(f"%{n + 1} = {kind}{reads} {extra}" for n, (kind, reads, extra) in enumerate(self.steps))


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


@st.composite
def random_regions(draw: st.DrawFn) -> tuple[RandomRegion, int, int]:
    """(a module, its input channels, its rank)."""
    rank = draw(st.sampled_from([2, 2, 1, 3]))
    channels = draw(st.sampled_from([1, 2, 4]))
    model = RandomRegion(rank)
    values = [Value(channels, (1,) * rank, (0,) * rank)]
    torch.manual_seed(draw(st.integers(0, 2**31)))
    for _ in range(draw(st.integers(2, 7))):
        index = draw(st.integers(max(0, len(values) - 3), len(values) - 1)) if draw(st.integers(0, 2)) else 0
        read = values[index]
        kind = draw(st.sampled_from(["conv", "conv", "conv", "norm", "merge", "merge", "merge", "pool", "number", "pad"]))
        if kind == "merge":
            _merge(draw, model, values)
        elif kind == "conv":
            _conv(draw, model, values, index)
        elif kind == "norm":
            _layer(model, values, index, _norm(rank, read.channels), read)
        elif kind == "pool":
            _pool(draw, model, values, index)
        elif kind == "pad":
            _pad(draw, model, values, index)
        else:
            _number(draw, model, values, index)
    _merge(draw, model, values)
    for module in model.modules():
        if isinstance(module, CONVS[rank]) and module.bias is not None and draw(st.booleans()):
            nn.init.zeros_(module.bias)
    return model, channels, rank


def _layer(model: RandomRegion, values: list[Value], index: int, module: nn.Module, gives: Value) -> None:
    model.add_step("layer", (index,), model.layer(module))
    values.append(gives)


def _norm(rank: int, channels: int) -> nn.Module:
    norm = NORMS[rank](channels)
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            tensor.copy_(torch.randn(channels))
        norm.running_var.uniform_(0.5, 1.5)
    return norm


def _conv(draw: st.DrawFn, model: RandomRegion, values: list[Value], index: int) -> None:
    read, rank = values[index], model.rank
    out = draw(st.sampled_from([read.channels, read.channels, 1, 2, 4]))
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 4) if read.channels % g == 0 and out % g == 0]))
    size = tuple(draw(st.sampled_from([1, 3, 3, 2, 5])) for _ in range(rank)) if draw(st.booleans()) else (1,) * rank
    dilation = tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(rank))
    stride = (draw(st.sampled_from([1, 1, 1, 2])),) * rank
    spans = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    same = draw(st.sampled_from([True, True, False]))
    padding = tuple(span // 2 if same else draw(st.integers(0, 2)) for span in spans)
    mode = draw(st.sampled_from(["zeros"] * 5 + ["reflect", "replicate", "circular"]))
    bias = draw(st.booleans())
    conv = CONVS[rank](read.channels, out, size, stride, padding, dilation, groups, bias, mode)
    margin = tuple(m + s * (2 * p - span) for m, s, p, span in zip(read.margin, read.stride, padding, spans, strict=True))
    _layer(model, values, index, conv, Value(out, tuple(a * b for a, b in zip(read.stride, stride, strict=True)), margin))


def _pool(draw: st.DrawFn, model: RandomRegion, values: list[Value], index: int) -> None:
    read, rank = values[index], model.rank
    size, stride = draw(st.sampled_from([2, 3])), draw(st.sampled_from([1, 2]))
    padding = draw(st.sampled_from([0, 1]))
    pool = POOLS[rank](size, stride, padding, draw(st.booleans()), draw(st.booleans()))
    margin = tuple(m + s * (2 * padding - size + 1) for m, s in zip(read.margin, read.stride, strict=True))
    _layer(model, values, index, pool, Value(read.channels, tuple(s * stride for s in read.stride), margin))


def _pad(draw: st.DrawFn, model: RandomRegion, values: list[Value], index: int) -> None:
    read = values[index]
    amounts = [(draw(st.integers(-1, 1)), draw(st.integers(-1, 1))) for _ in range(model.rank)]
    value = draw(st.sampled_from([0.0, 0.0, 0.5]))
    model.add_step("pad", (index,), ([n for pair in reversed(amounts) for n in pair], value))
    margin = tuple(m + s * sum(pair) for m, s, pair in zip(read.margin, read.stride, amounts, strict=True))
    values.append(Value(read.channels, read.stride, margin))


def _number(draw: st.DrawFn, model: RandomRegion, values: list[Value], index: int) -> None:
    read = values[index]
    kind = draw(st.sampled_from(["scale", "divide", "shift"]))
    number: object = draw(st.sampled_from([2.0, -0.5]))
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(read.channels, *(1,) * model.rank), (1, read.channels, *(1,) * model.rank), (1,)]))
        name = f"constant{len(model.steps)}"
        model.register_buffer(name, 0.5 + torch.rand(shape, dtype=torch.float64))
        number = getattr(model, name)
    model.add_step(kind, (index,), number)
    values.append(read)


def _merge(draw: st.DrawFn, model: RandomRegion, values: list[Value]) -> None:
    a = draw(st.integers(max(0, len(values) - 3), len(values) - 1))
    fits = [i for i, value in enumerate(values) if value == values[a]]
    alike = [i for i, value in enumerate(values) if (value.stride, value.margin) == (values[a].stride, values[a].margin)]
    kind = draw(st.sampled_from(["add", "add", "add_", "sub", "sum", "cat"]))
    if kind == "cat":
        parts = (a, draw(st.sampled_from(alike)))
        model.add_step("cat", parts)
        values.append(Value(sum(values[i].channels for i in parts), values[a].stride, values[a].margin))
        return
    parts = (a, *(draw(st.sampled_from(fits)) for _ in range(2 if kind == "sum" else 1)))
    model.add_step(kind, parts, draw(st.sampled_from([1, 2])) if kind == "sub" else None)
    values.append(values[a])


def sizes_to_try(rank: int) -> list[tuple[int, ...]]:
    """Sources, small enough that most outputs see a border, of even and of odd sizes."""
    return [(7, 8, 9)[:rank], (10, 7, 8)[:rank], (13, 12, 9)[:rank]]
