"""Why a layer of a torch model is not read: a hook, a quantized weight, one that is computed or written to; said once."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError, UnrepairedPruneWarning
from tests.support.small_models import normal

X = normal(2, 4, 6, 5).float()


def observe(*_: object) -> None:
    """A hook."""


def hooked(register: Callable[[nn.Module], Any]) -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight norm is deprecated
        register(conv)
    return nn.Sequential(conv, nn.BatchNorm2d(4)).eval()


def reasons(model: Any) -> list[tuple[str, str]]:
    return [(refusal.node, refusal.reason) for refusal in reparam_compiler.inspect(model).refusals]


@pytest.mark.parametrize(
    ("register", "reason"),
    [
        (lambda c: c.register_forward_hook(observe), "has a forward hook (observe)"),
        (lambda c: c.register_forward_pre_hook(observe), "has a forward pre-hook (observe)"),
        (lambda c: c.register_full_backward_hook(observe), "has a backward hook (observe)"),
        (
            lambda c: prune.l1_unstructured(c, "weight", 0.3),
            "has a pruning mask that a hook applies; torch.nn.utils.prune.remove makes it a part of the weight",
        ),
        (
            weight_norm,
            "has a weight norm that a hook applies; torch.nn.utils.remove_weight_norm makes it a part of the weight",
        ),
        (
            spectral_norm,
            "has a spectral norm that a hook applies; torch.nn.utils.remove_spectral_norm makes it a part of the weight",
        ),
        (lambda c: setattr(c, "forward", lambda x: x), "has a forward() of its own"),
    ],
)
def test_what_calling_a_conv_does_besides_is_named(register: Callable[[nn.Module], Any], reason: str) -> None:
    assert reasons(fx.symbolic_trace(hooked(register))) == [("_1", f"_0 (Conv2d) {reason}")]


def test_one_cause_is_said_once() -> None:
    blocks = [block for _ in range(3) for block in (hooked(lambda c: c.register_forward_hook(observe)), nn.ReLU())]
    assert reasons(fx.symbolic_trace(nn.Sequential(*blocks))) == [
        ("_0_1", "_0_0 (Conv2d) has a forward hook (observe); 2 more for that")
    ]


def test_pruning_names_what_keeps_the_channels_of_a_layer_before() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), hooked(lambda c: c.register_full_backward_hook(observe)), nn.Conv2d(4, 4, 1))
    with pytest.raises(reparam_compiler.InfeasiblePruneError, match=r"0: _1_0 \(Conv2d\) has a backward hook \(observe\)"):
        reparam_compiler.prune(fx.symbolic_trace(model.eval()), (X,), ratio=0.5)


def test_a_norm_with_a_hook_is_no_silence() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    model[1].register_forward_hook(observe)
    assert reasons(fx.symbolic_trace(model)) == [("_1", "has a forward hook (observe)")]


@pytest.mark.parametrize("trace", [fx.symbolic_trace, lambda model: torch.export.export(model, (X,))])
def test_a_norm_by_the_statistics_of_each_batch_is_named(trace: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    ((_, reason),) = reasons(trace(model))
    assert reason == "normalizes by the statistics of each batch (track_running_stats=False)"


class Net(nn.Module):
    def __init__(self, forward: Callable[["Net", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.register_buffer("changing", torch.randn(4, 4, 3, 3))
        self.norm, self.how = nn.BatchNorm2d(4), forward

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.norm(self.how(self, x, w))


def quantized(m: Net, x: Tensor, w: Tensor) -> Tensor:
    steps = torch.fake_quantize_per_tensor_affine(w, 0.1, 0, -128, 127)
    return F.conv2d(x, steps)


def written(m: Net, x: Tensor, w: Tensor) -> Tensor:
    m.changing.mul_(x.mean())
    return F.conv2d(x, m.changing)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda m, x, w: F.conv2d(x, w), "has a weight that is an input of the model, w"),
        (lambda m, x, w: F.conv2d(x, weight=m.weight * w), "has a weight that is computed from an input of the model, w"),
        (quantized, "has a quantized weight"),
        (written, "has a weight that the model writes to, changing"),
    ],
)
def test_a_weight_that_is_no_constant_is_named(how: Callable[[Net, Tensor, Tensor], Tensor], reason: str) -> None:
    model = Net(how).eval()
    ((_, found),) = reasons(fx.symbolic_trace(model))
    assert found == f"conv2d (conv2d) {reason}"
    exported = torch.export.export(model, (X, torch.randn(4, 4, 3, 3)))
    assert [found.partition(") ")[2] for _, found in reasons(exported)] == [reason]


def test_a_conv_with_constant_weights_has_no_cause() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    assert reasons(fx.symbolic_trace(model)) == [("_2", "_1 (relu) is not linear")]


class Bits(nn.Module):
    """A weight of which the last bits are cut: its form in float64 has other bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        cut = (self.conv.weight.view(torch.int32) & ~0xFFF).view(torch.float32)
        return self.norm(F.conv2d(x, cut, self.conv.bias))


class Observed(nn.Module):
    """A weight that an op for float32 alone rounds to steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("on", torch.zeros(1, dtype=torch.int64))
        for name, values in (("low", -torch.ones(1)), ("high", torch.ones(1)), ("scale", torch.full((1,), 0.01))):
            self.register_buffer(name, values)
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        state = (self.on, self.on + 1, self.low, self.high, self.scale, self.zero)
        steps = torch.fused_moving_avg_obs_fake_quant(self.conv.weight, *state, 0.01, -128, 127, 0)
        return self.norm(F.conv2d(x, steps, self.conv.bias))


@pytest.mark.parametrize("kind", [Bits, Observed])
@pytest.mark.parametrize("trace", [fx.symbolic_trace, lambda model: torch.export.export(model, (X,))])
def test_a_weight_that_has_no_form_in_float64_is_as_the_model_computes_it(kind: type[nn.Module], trace: Any) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    expected = model(X)
    fused = reparam_compiler.fuse(trace(model))
    torch.testing.assert_close((fused if isinstance(fused, nn.Module) else fused.module())(X), expected)
    assert torch.equal(model(X), expected)


def through_a_slice(x: Tensor) -> Tensor:
    x[:, :2].mul_(2)
    return x


def through_a_flat_view(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    flat.relu_()
    return x


def into_a_result(x: Tensor) -> Tensor:
    result = torch.empty_like(x)
    torch.add(x, 1, out=result)
    return result


@pytest.mark.parametrize("write", [through_a_slice, through_a_flat_view, into_a_result])
def test_a_write_in_place_is_the_cause_where_ops_that_are_known_are_kept(write: Callable[[Tensor], Tensor]) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(write(self.a(x)))

    with pytest.raises(InfeasiblePruneError, match=r"\) touches memory that is written to in place") as raised:
        reparam_compiler.prune(fx.symbolic_trace(Written().eval()), (X,), ratio=0.5)
    assert "understood" not in str(raised.value)


@pytest.mark.parametrize(
    "traced", [lambda net, x: net, lambda net, x: torch.export.export(net, (x,))], ids=["module", "program"]
)
@pytest.mark.parametrize(
    ("conv", "shape"),
    [(nn.Conv1d, (4, 9)), (nn.Conv2d, (4, 9, 9)), (nn.Conv3d, (4, 5, 5, 5)), (nn.ConvTranspose2d, (4, 5, 5))],
)
def test_a_conv_that_is_called_on_one_sample_is_named(conv: Any, shape: tuple[int, ...], traced: Callable[..., Any]) -> None:
    net, x = nn.Sequential(conv(4, 8, 3), nn.ReLU(), conv(8, 4, 1)).eval(), torch.randn(shape)
    words = r"\((Conv\w+|conv\w+)\) is called on one sample, without a batch; give the model a batch of one, x\[None\]"
    with pytest.raises(InfeasiblePruneError, match=words):
        reparam_compiler.prune(traced(net, x), (x,), ratio=0.5)
    with pytest.warns(UnrepairedPruneWarning):
        _, report = reparam_compiler.prune(traced(net, x[None]), (x[None],), ratio=0.5, round_to=1, return_report=True)
    assert report.before.params > report.after.params
