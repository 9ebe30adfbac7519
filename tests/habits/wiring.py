"""How modules are reached, and what hangs on them."""

import copy
import functools
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.habits.parts import SIZE, WIDTH, Net, habit, picture


def _block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())


@habit()
class ListOfModules(Net):
    """Children reached through a plain list."""

    def build(self) -> None:
        self.first, self.second = _block(), _block()
        self.order = [self.first, self.second]

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        for layer in self.order:
            y = layer(y)
        return self.c(y)


@habit()
class BoundMethods(Net):
    """A bound method kept as an attribute: self.path = self.body."""

    def build(self) -> None:
        self.path = self.body

    def forward(self, x: Tensor) -> Any:
        return self.c(self.path(self.stem(x)))


@habit()
class ForwardReplaced(Net):
    """An instance whose forward was replaced: m.forward = types.MethodType(f, m) (ultralytics' forward_fuse)."""

    def build(self) -> None:
        def other(self: Any, x: Tensor) -> Any:
            return self.c(self.stem(x) + self.body(self.stem(x)))

        self.forward = types.MethodType(other, self)


@habit()
class ModulesByName(Net):
    """getattr(self, f"layer{i}") and a ModuleDict."""

    def build(self) -> None:
        self.layer1, self.layer2 = _block(), _block()
        self.heads = nn.ModuleDict({"mask": nn.Conv2d(WIDTH, 4, 1), "edge": nn.Conv2d(WIDTH, 2, 1)})

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        for i in (1, 2):
            y = getattr(self, f"layer{i}")(y)
        return {name: head(y) for name, head in self.heads.items()}


@habit(parts=lambda: {"heads": nn.ModuleList([nn.Conv2d(WIDTH, 6, 1), nn.Conv2d(WIDTH, 6, 1)])})
def loop_over_scales(m: Any, x: Tensor) -> Any:
    """A detector's heads over scales, results written back into the list."""
    xs = [m.stem(x), m.body(F.max_pool2d(m.stem(x), 2))]
    for i in range(len(m.heads)):
        xs[i] = m.heads[i](xs[i])
    return torch.cat([y.flatten(2) for y in xs], 2)


@habit(parts=lambda: {"block": _block()})
def module_called_twice(m: Any, x: Tensor) -> Any:
    """One module called twice (a head shared by scales)."""
    return m.c(m.block(m.block(m.stem(x))))


@habit()
class TiedWeights(Net):
    """One parameter in two convs: self.b.weight = self.d.weight."""

    def build(self) -> None:
        self.d, self.nd = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.b.weight = self.d.weight

    def forward(self, x: Tensor) -> Any:
        return self.c(self.nd(self.d(self.features(x))).relu())


@habit()
class FunctionalConv(Net):
    """F.conv2d and F.batch_norm over the attributes of children."""

    def forward(self, x: Tensor) -> Any:
        y = F.conv2d(self.stem(x), self.b.weight, self.b.bias, self.b.stride, self.b.padding)
        n = self.nb
        y = F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, n.training, n.momentum, n.eps)
        return self.c(F.relu(y, inplace=True))


@habit()
class ParametersInALoop(Net):
    """A ParameterList, and branches summed from 0."""

    def build(self) -> None:
        self.gates = nn.ParameterList([nn.Parameter(torch.rand(WIDTH, 1, 1)) for _ in range(2)])

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        return self.c(sum(gate * branch for gate, branch in zip(self.gates, (y, self.body(y)), strict=True)))


@habit()
class AttributesRead(Net):
    """Attributes that callers read: names, stride."""

    def build(self) -> None:
        self.names, self.stride = {0: "cat", 1: "dog"}, torch.tensor([8.0, 16.0])


@habit()
class MethodsCalled(Net):
    """Methods beside forward that callers use: forward_features, forward_head (timm)."""

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward_head(self, y: Tensor) -> Tensor:
        return self.fc(y.mean((2, 3)))

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))


@habit()
class TableIndexed(Net):
    """A table indexed by a buffer in forward (Swin's relative positions)."""

    def build(self) -> None:
        self.table = nn.Parameter(torch.randn(20, WIDTH))
        self.register_buffer("index", torch.arange(SIZE[0] * SIZE[1]).remainder(20).view(SIZE))

    def forward(self, x: Tensor) -> Any:
        bias = self.table[self.index.view(-1)].view(*SIZE, -1).permute(2, 0, 1).contiguous()
        return self.c(self.body(self.stem(x) + bias.unsqueeze(0)))


@habit()
class CounterWritten(Net):
    """A buffer that forward counts its calls in."""

    def build(self) -> None:
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.c(self.features(x))


@habit()
class GridKept(Net):
    """Anchors kept between calls, and made anew where the size changed (YOLOv5)."""

    def build(self) -> None:
        self.grid = torch.zeros(1)
        self.shape: Any = None

    def forward(self, x: Tensor) -> Any:
        y = self.c(self.features(x))
        if self.shape != y.shape[2:]:
            self.shape = y.shape[2:]
            self.grid = torch.arange(y.shape[3], dtype=y.dtype, device=y.device)
        return y + self.grid


def _observe(*_: Any) -> None:
    """A hook that changes nothing."""


@habit(after=lambda net: net.b.register_forward_hook(_observe) and net)
def observing_hook(m: Any, x: Tensor) -> Any:
    """A forward hook on a conv, which looks and changes nothing."""
    return m.c(m.features(x))


@habit(after=lambda net: net.b.register_forward_hook(lambda module, given, found: found * 2) and net)
def changing_hook(m: Any, x: Tensor) -> Any:
    """A forward hook on a conv, which gives another value."""
    return m.c(m.features(x))


@habit(after=lambda net: net.b.register_forward_pre_hook(lambda module, given: (given[0] + 1,)) and net)
def pre_hook(m: Any, x: Tensor) -> Any:
    """A forward pre-hook that changes the input of a conv."""
    return m.c(m.features(x))


@habit(after=lambda net: net.register_forward_hook(_observe) and net)
def hook_on_the_top(m: Any, x: Tensor) -> Any:
    """A forward hook on the whole model."""
    return m.c(m.features(x))


@habit(after=lambda net: net.b.register_full_backward_hook(_observe) and net)
def backward_hook(m: Any, x: Tensor) -> Any:
    """A backward hook on a conv (Grad-CAM)."""
    return m.c(m.features(x))


@habit()
class MaskedByPrune(Net):
    """torch.nn.utils.prune: a mask, and a hook that makes the weight."""

    def build(self) -> None:
        prune.l1_unstructured(self.b, "weight", 0.3)


@habit(after=copy.deepcopy)
def deep_copy(m: Any, x: Tensor) -> Any:
    """An EMA copy by copy.deepcopy, without gradients."""
    return m.c(m.features(x))


@habit(after=lambda net: torch.optim.swa_utils.AveragedModel(net).eval())
def averaged_model(m: Any, x: Tensor) -> Any:
    """torch.optim.swa_utils.AveragedModel round the net."""
    return m.c(m.features(x))


@habit(after=lambda net: nn.DataParallel(net).eval())
def data_parallel(m: Any, x: Tensor) -> Any:
    """nn.DataParallel round the net."""
    return m.c(m.features(x))


@habit(after=lambda net: torch.compile(net, backend="eager"))
def compiled_module(m: Any, x: Tensor) -> Any:
    """A net that torch.compile was called on."""
    return m.c(m.features(x))


@habit(after=lambda net: torch.jit.trace(net, picture(2)))
def traced_by_jit(m: Any, x: Tensor) -> Any:
    """A net of torch.jit.trace."""
    return m.c(m.features(x))


@habit(after=lambda net: torch.jit.script(net))
class ScriptedSequential(nn.Sequential):
    """A net of torch.jit.script."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, 8, 1))


@habit()
class NamesThatCollide(Net):
    """Children called add, relu and x."""

    def build(self) -> None:
        self.add, self.relu, self.x = nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.c(self.x(self.relu(self.add(self.features(x)))))


@habit()
class PartialInForward(Net):
    """functools.partial and a lambda as activations."""

    def build(self) -> None:
        self.act, self.last = functools.partial(F.leaky_relu, negative_slope=0.1), lambda y: y * 2

    def forward(self, x: Tensor) -> Any:
        return self.last(self.c(self.act(self.nb(self.b(self.stem(x))))))


@torch.library.custom_op("habits::add", mutates_args=())
def _weighted_add(x: Tensor, y: Tensor) -> Tensor:
    return x + 0.25 * y


@_weighted_add.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


@habit()
def custom_operator(m: Any, x: Tensor) -> Any:
    """A custom op whose name is that of one of torch's."""
    y = m.stem(x)
    return m.c(torch.ops.habits.add(y, m.body(y)))
