"""Random graphs of linear ops from one source, most of them near an exact region and some just beside one.

Every value is run on two small sources as the graph is drawn, so that sums and concats can be made to fit; a few steps are
made to miss: padding, strides and dilations off by one, biases under padding, borders that hold another number, flips.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
SMALL = ((9, 8, 7), (10, 11, 6))
"""Sizes that the values are drawn on, for up to three axes."""


class RandomRegion(nn.Module):
    """Runs steps over a list of values; the last one is the output, through a ReLU."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.rank = rank
        self.layers = nn.ModuleList()
        self.steps: list[tuple[str, tuple[int, ...], object]] = []
        sources = [torch.zeros(1, channels, *sizes[:rank], dtype=torch.float64) for sizes in SMALL]
        self._seen: list[tuple[Tensor, ...]] = [tuple(sources)]

    def layer(self, module: nn.Module) -> int:
        self.layers.append(randomised(module).double().eval())
        return len(self.layers) - 1

    def add_step(self, kind: str, reads: tuple[int, ...], extra: object = None) -> bool:
        """Adds a step where it gives something on both sources; False where it does not."""
        try:
            with torch.no_grad():
                found = tuple(
                    self._step(kind, [self._seen[i][n] for i in reads], extra).detach() for n in range(len(self._seen[0]))
                )
        except (RuntimeError, IndexError):
            return False
        if any(not y.numel() or y.ndim != self.rank + 2 for y in found):
            return False
        self.steps.append((kind, reads, extra))
        self._seen.append(found)
        return True

    def shapes(self, index: int) -> tuple[torch.Size, ...]:
        return tuple(y.shape for y in self._seen[index])

    def channels(self, index: int) -> int:
        return int(self._seen[index][0].shape[1])

    def __len__(self) -> int:
        return len(self.steps) + 1

    def forward(self, x: Tensor) -> Tensor:
        values = [torch.tanh(x)]
        for kind, reads, extra in self.steps:
            values.append(self._step(kind, [values[i] for i in reads], extra))
        return torch.relu(values[-1])

    def _step(self, kind: str, given: list[Tensor], extra: object) -> Tensor:
        return STEPS[kind](self, given, extra)

    def extra_repr(self) -> str:
        return "; ".join(f"%{n + 1} = {kind}{reads} {extra}" for n, (kind, reads, extra) in enumerate(self.steps))


def _bordered(m: RandomRegion, given: list[Tensor], extra: object) -> Tensor:
    """Extended by one at each end with a number for each channel: how DyRep pads by a bias."""
    (y,) = given
    for axis in range(2, m.rank + 2):
        edge = torch.zeros_like(y.narrow(axis, 0, 1)) + getattr(m, str(extra))
        y = torch.cat([edge, y, edge], axis)
    return y


STEPS: dict[str, Callable[[RandomRegion, list[Tensor], object], Tensor]] = {
    "layer": lambda m, given, extra: m.layers[extra](given[0]),
    "add": lambda m, given, extra: given[0] + given[1],
    "add_": lambda m, given, extra: given[0].clone().add_(given[1]),
    "sub": lambda m, given, extra: torch.sub(given[0], given[1], alpha=extra),
    "sum": lambda m, given, extra: sum(given),
    "stack": lambda m, given, extra: torch.stack(given, extra).sum(extra),
    "average": lambda m, given, extra: torch.stack(given).mean(0),
    "cat": lambda m, given, extra: torch.cat(given, dim=1),
    "scale": lambda m, given, extra: given[0] * (getattr(m, extra) if isinstance(extra, str) else extra),
    "divide": lambda m, given, extra: given[0] / (getattr(m, extra) if isinstance(extra, str) else extra),
    "shift": lambda m, given, extra: (getattr(m, extra) if isinstance(extra, str) else extra) - given[0],
    "pad": lambda m, given, extra: F.pad(given[0], extra[0], value=extra[1]),
    "border": _bordered,
    "channels": lambda m, given, extra: given[0][:, extra[0] : extra[1]],
    "halves": lambda m, given, extra: torch.cat(torch.chunk(given[0], 2, 1)[::-1], 1),
    "crop": lambda m, given, extra: given[0][(slice(None), slice(None), *(slice(low, high) for low, high in extra))],
    "every": lambda m, given, extra: given[0][(slice(None), slice(None), *(slice(None, None, step) for step in extra))],
    "roll": lambda m, given, extra: torch.roll(given[0], extra, -1),
    "flip": lambda m, given, extra: given[0].flip(-1),
    "last": lambda m, given, extra: m.layers[extra](given[0].movedim(1, -1)).movedim(-1, 1),
}
"""What each kind of step does."""
KINDS = (*["conv"] * 6, *["merge"] * 6, "norm", "norm", "pool", "number", "pad", "border", "cut", "cut", "moved", "transposed")


@st.composite
def random_regions(draw: st.DrawFn) -> tuple[RandomRegion, int, int]:
    """(a module, its input channels, its rank)."""
    rank = draw(st.sampled_from([2, 2, 1, 3]))
    channels = draw(st.sampled_from([1, 2, 4]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    model = RandomRegion(rank, channels)
    for _ in range(draw(st.integers(2, 7))):
        index = draw(st.integers(max(0, len(model) - 3), len(model) - 1)) if draw(st.integers(0, 2)) else 0
        DRAWS[draw(st.sampled_from(KINDS))](draw, model, index)
    _merge(draw, model, len(model) - 1)
    for module in model.modules():
        if isinstance(module, CONVS[rank]) and module.bias is not None and draw(st.booleans()):
            nn.init.zeros_(module.bias)
    return model, channels, rank


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                for tensor in (norm.running_mean, norm.weight, norm.bias):
                    tensor.copy_(torch.randn(tensor.shape))
                norm.running_var.uniform_(0.5, 1.5)
    return module


def _conv(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    into, rank = model.channels(index), model.rank
    out = draw(st.sampled_from([into, into, 1, 2, 4]))
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 4) if into % g == 0 and out % g == 0]))
    size = tuple(draw(st.sampled_from([1, 3, 3, 2, 5])) for _ in range(rank)) if draw(st.booleans()) else (1,) * rank
    dilation = tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(rank))
    stride = (draw(st.sampled_from([1, 1, 1, 2])),) * rank
    spans = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    same = draw(st.sampled_from([True, True, False]))
    padding = tuple(span // 2 if same else draw(st.integers(0, 2)) for span in spans)
    mode = draw(st.sampled_from(["zeros"] * 5 + ["reflect", "replicate", "circular"]))
    conv = CONVS[rank](into, out, size, stride, padding, dilation, groups, draw(st.booleans()), mode)
    model.add_step("layer", (index,), model.layer(conv))


def _transposed(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    """Two of them, of different sizes, that give the same positions."""
    into, rank, stride = model.channels(index), model.rank, draw(st.sampled_from([2, 2, 3, 1]))
    for more in (0, 2):
        groups = draw(st.sampled_from([g for g in (1, 2) if into % g == 0]))
        cut = more // 2 if draw(st.integers(0, 5)) else 0
        layer = TRANSPOSED[rank](into, into, stride + more, stride, cut, groups=groups, bias=draw(st.booleans()))
        model.add_step("layer", (index,), model.layer(layer))


def _norm(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    model.add_step("layer", (index,), model.layer(NORMS[model.rank](model.channels(index))))


def _pool(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    size, stride, padding = draw(st.sampled_from([2, 3])), draw(st.sampled_from([1, 2])), draw(st.sampled_from([0, 1]))
    pool = POOLS[model.rank](size, stride, padding, draw(st.booleans()), draw(st.booleans()))
    model.add_step("layer", (index,), model.layer(pool))


def _pad(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    amounts = [draw(st.integers(-1, 1)) for _ in range(2 * model.rank)]
    model.add_step("pad", (index,), (amounts, draw(st.sampled_from([0.0, 0.0, 0.5]))))


def _border(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    """A pointwise conv, padded by its own bias; or by another number, which no conv does."""
    conv = CONVS[model.rank](model.channels(index), model.channels(index), 1)
    if not model.add_step("layer", (index,), model.layer(conv)):
        return
    name = f"border{len(model.steps)}"
    value = conv.bias.detach().double() + (draw(st.integers(0, 3)) == 0)
    model.register_buffer(name, value.reshape(1, -1, *(1,) * model.rank))
    if model.add_step("border", (len(model) - 1,), name):
        wide = CONVS[model.rank](model.channels(index), model.channels(index), 3, bias=draw(st.booleans()))
        model.add_step("layer", (len(model) - 1,), model.layer(wide))


def _cut(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    kinds = ["channels", "crop", "every", *(["halves"] if model.channels(index) % 2 == 0 else [])]
    kind = draw(st.sampled_from(kinds))
    extra: object = None
    if kind == "channels":
        start = draw(st.integers(0, 1))
        extra = (start, draw(st.integers(start + 1, 4)))
    elif kind == "crop":
        extra = [(draw(st.integers(0, 1)), draw(st.sampled_from([None, -1]))) for _ in range(model.rank)]
    elif kind == "every":
        extra = [draw(st.sampled_from([1, 2])) for _ in range(model.rank)]
    model.add_step(kind, (index,), extra)


def _moved(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    kind = draw(st.sampled_from(["roll", "flip", "last", "last"]))
    channels = model.channels(index)
    extra = model.layer(nn.Linear(channels, channels)) if kind == "last" else draw(st.sampled_from([1, -1]))
    model.add_step(kind, (index,), extra)


def _number(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    kind = draw(st.sampled_from(["scale", "divide", "shift"]))
    number: object = draw(st.sampled_from([2.0, -0.5]))
    if draw(st.booleans()):
        channels = model.channels(index)
        shape = draw(st.sampled_from([(channels, *(1,) * model.rank), (1, channels, *(1,) * model.rank), (1,)]))
        number = f"constant{len(model.steps)}"
        model.register_buffer(number, 0.5 + torch.rand(shape, dtype=torch.float64))
    model.add_step(kind, (index,), number)


def _merge(draw: st.DrawFn, model: RandomRegion, index: int) -> None:
    a = draw(st.integers(max(0, len(model) - 3), len(model) - 1))
    fits = [i for i in range(len(model)) if model.shapes(i) == model.shapes(a)]
    alike = [i for i in range(len(model)) if [s[2:] for s in model.shapes(i)] == [s[2:] for s in model.shapes(a)]]
    kind = draw(st.sampled_from(["add", "add", "add_", "sub", "sum", "stack", "average", "cat"]))
    if kind == "cat":
        model.add_step("cat", (a, draw(st.sampled_from(alike))))
        return
    count = 2 if kind in ("add", "add_", "sub") else 3
    extra = {"sub": draw(st.sampled_from([1, 2])), "stack": draw(st.sampled_from([0, 1]))}.get(kind)
    model.add_step(kind, (a, *(draw(st.sampled_from(fits)) for _ in range(count - 1))), extra)


DRAWS: dict[str, Callable[[st.DrawFn, RandomRegion, int], None]] = {
    "conv": _conv,
    "transposed": _transposed,
    "norm": _norm,
    "pool": _pool,
    "pad": _pad,
    "border": _border,
    "cut": _cut,
    "moved": _moved,
    "number": _number,
    "merge": _merge,
}


def sizes_to_try(rank: int) -> list[tuple[int, ...]]:
    """Sources, small enough that most outputs see a border, of even and of odd sizes."""
    return [(7, 8, 9)[:rank], (10, 7, 8)[:rank], (13, 12, 9)[:rank]]
