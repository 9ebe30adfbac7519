"""Modes, dtypes, memory, and control flow in forward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tests.habits.parts import WIDTH, Net, habit, picture


@habit()
def no_grad_in_forward(m: Any, x: Tensor) -> Any:
    """with torch.no_grad(): round the backbone."""
    with torch.no_grad():
        y = m.features(x)
    return m.c(y)


@habit()
class NoGradDecorator(Net):
    """@torch.no_grad() on forward."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.c(self.features(x))


@habit()
def autocast_off_in_forward(m: Any, x: Tensor) -> Any:
    """torch.autocast(enabled=False) round the head (RT-DETR)."""
    y = m.stem(x)
    with torch.autocast("cpu", enabled=False):
        return m.c(m.body(y.float()))


@habit(exact=0.1)
def autocast_in_forward(m: Any, x: Tensor) -> Any:
    """torch.autocast(dtype=bfloat16) in forward."""
    y = m.stem(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.body(y)
    return m.c(y.float())


@habit()
def checkpointed(m: Any, x: Tensor) -> Any:
    """torch.utils.checkpoint in forward."""
    return m.c(checkpoint(m.body, m.stem(x), use_reentrant=False))


@habit(parts=lambda: {"drop": nn.Dropout2d(0.5)})
def dropout(m: Any, x: Tensor) -> Any:
    """nn.Dropout2d, and F.dropout(training=self.training)."""
    return m.c(F.dropout(m.drop(m.features(x)), 0.3, training=m.training))


@habit()
def stochastic_depth(m: Any, x: Tensor) -> Any:
    """A branch that is dropped at random where the model trains."""
    y = m.stem(x)
    if not m.training or torch.rand(()) < 0.5:
        y = y + m.body(y)
    return m.c(y)


@habit()
def branch_on_data(m: Any, x: Tensor) -> Any:
    """if y.mean() > 0: of a value."""
    y = m.stem(x)
    if y.mean() > 1e3:
        y = y * 0
    return m.c(m.body(y))


@habit()
def branch_on_shape(m: Any, x: Tensor) -> Any:
    """if x.shape[1] == 3: and an assertion on the rank."""
    if x.dim() != 4:
        raise ValueError("expected a batch of pictures")
    if x.shape[1] == 3:
        x = x.flip(1)
    return m.c(m.features(x))


@habit()
def conditional(m: Any, x: Tensor) -> Any:
    """torch.cond over two functions."""
    y = m.stem(x)
    return m.c(torch.cond(y.sum() > 0, lambda v: m.body(v), lambda v: m.body(-v), (y,)))


@habit()
def tried(m: Any, x: Tensor) -> Any:
    """try: … except: in forward."""
    y = m.stem(x)
    try:
        y = m.body(y)
    except ValueError:
        y = y * 0
    return m.c(y)


@habit()
def written_in_place(m: Any, x: Tensor) -> Any:
    """y[:, :4] = 0, y += …, relu_."""
    y = m.stem(x)
    y += m.body(y.clone())
    y[:, :4] *= 2
    return m.c(y.relu_())


@habit()
def boolean_mask(m: Any, x: Tensor) -> Any:
    """y[y > 0], whose size depends on values."""
    y = m.c(m.features(x))
    return y[y > 0]


@habit()
def moved_to_the_device(m: Any, x: Tensor) -> Any:
    """x.to(next(self.parameters()).device, dtype)."""
    weight = next(m.parameters())
    return m.c(m.features(x.to(weight.device, weight.dtype)))


@habit(args=lambda batch: (picture(batch).mul(50).byte(),))
def pixels_of_bytes(m: Any, x: Tensor) -> Any:
    """uint8 pixels, normalised in forward."""
    return m.c(m.features((x.float() / 255 - 0.5) / 0.25))


@habit(
    args=lambda batch: (picture(batch).to(memory_format=torch.channels_last),),
    after=lambda net: net.to(memory_format=torch.channels_last),
)
def channels_last(m: Any, x: Tensor) -> Any:
    """Weights and input in channels_last."""
    return m.c(m.features(x))


@habit(args=lambda batch: (picture(batch).half(),), after=lambda net: net.half(), exact=2e-2)
def half(m: Any, x: Tensor) -> Any:
    """A net of float16."""
    return m.c(m.features(x))


@habit(args=lambda batch: (picture(batch).bfloat16(),), after=lambda net: net.bfloat16(), exact=0.1)
def bfloat16(m: Any, x: Tensor) -> Any:
    """A net of bfloat16."""
    return m.c(m.features(x))


@habit(args=lambda batch: (picture(batch).double(),), after=lambda net: net.double(), exact=1e-6)
def double(m: Any, x: Tensor) -> Any:
    """A net of float64."""
    return m.c(m.features(x))


def _norms_in_float32(net: nn.Module) -> nn.Module:
    net.half()
    net.fc.float()
    return net


@habit(args=lambda batch: (picture(batch).half(),), after=_norms_in_float32, exact=2e-2)
def mixed_dtypes(m: Any, x: Tensor) -> Any:
    """A float32 head on a float16 net."""
    return m.fc(m.features(x).mean((2, 3)).float())


@habit(after=lambda net: net.to("meta"))
def meta_tensors(m: Any, x: Tensor) -> Any:
    """Weights on the device meta."""
    return m.c(m.features(x))


def _fake(net: nn.Module) -> nn.Module:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in net.modules():
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        fake = mode.from_tensor(tensor)
                        store[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
    return net


@habit(after=_fake)
def fake_tensors(m: Any, x: Tensor) -> Any:
    """Fake weights, of FakeTensorMode."""
    return m.c(m.features(x))


@habit(after=lambda net: net.requires_grad_(False))
def frozen_parameters(m: Any, x: Tensor) -> Any:
    """requires_grad_(False) on all of it."""
    return m.c(m.features(x))


@habit(after=lambda net: net.train())
def train_mode(m: Any, x: Tensor) -> Any:
    """A model that was left in training mode."""
    return m.c(m.features(x))


def _made_under_inference_mode(net: nn.Module) -> nn.Module:
    with torch.inference_mode():
        for module in net.modules():
            for name, tensor in list(module._parameters.items()):
                if tensor is not None:
                    module._parameters[name] = nn.Parameter(tensor.detach().clone(), requires_grad=False)
    return net


@habit(after=_made_under_inference_mode)
def inference_tensors(m: Any, x: Tensor) -> Any:
    """Weights that were made under torch.inference_mode()."""
    return m.c(m.features(x))


def _seen() -> nn.Module:
    lazy = nn.LazyConv2d(WIDTH, 1)
    lazy(picture(1, WIDTH))
    return lazy


@habit(parts=lambda: {"lazy": _seen()})
def lazy_module(m: Any, x: Tensor) -> Any:
    """A lazy conv that has seen its first input."""
    return m.c(m.lazy(m.features(x)))
