"""What a hostile reviewer tried: models that look fusable and are something else on another batch, size, dtype or call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from tests.support.small_models import relative_error

Body = Callable[["Model", Tensor], Tensor]
SIZES = ((1, 8, 8), (2, 8, 8), (3, 16, 9), (1, 100, 90), (2, 7, 200))
FLOAT32 = 1e-5


class Model(nn.Module):
    """A body between convs a, b (from 4 channels to 4) and whatever else it is given."""

    def __init__(self, body: Body, **held: Any) -> None:
        super().__init__()
        self.body = body
        self.a, self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.one, self.other = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def agrees(model: nn.Module, example: Tensor | None, channels: int = 4, *, verify: bool = True) -> None:
    """On every size that the model itself takes the fused one gives the same, from a symbolic trace."""
    model = model.eval()
    fused = reparam_compiler.fuse(model, None if example is None else (example,), policy="always", verify=verify)
    ran = 0
    for batch, height, width in SIZES:
        x = torch.randn(batch, channels, height, width)
        try:
            with torch.no_grad():
                expected = model(x.clone())
        except RuntimeError:
            continue
        with torch.no_grad():
            found = fused(x.clone())
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert relative_error(expected, found) < FLOAT32
        ran += 1
    assert ran > 1


def _with_axis(y: Tensor, x: Tensor) -> Tensor:
    return y.view(-1, 1, 4, x.size(2), x.size(3))


OF_THE_BATCH: dict[str, Body] = {
    "first": lambda m, x: m.b(m.a(x)[:1]),
    "every other": lambda m, x: m.b(m.a(x)[::2]),
    "flip": lambda m, x: m.one(x) + m.other(x.flip(0)),
    "roll": lambda m, x: m.one(x) + m.other(x.roll(1, 0)),
    "mean": lambda m, x: m.one(x) + m.other(x.mean(0, keepdim=True)),
    "cumsum": lambda m, x: m.one(x) + m.other(x.cumsum(0)),
    "joined": lambda m, x: torch.cat([_with_axis(m.a(x), x), _with_axis(m.b(x), x)], 0).sum(0),
}
OF_POSITIONS: dict[str, Body] = {
    "crop at 64": lambda m, x: m.a(x)[:, :, :64, :64] + m.b(x)[:, :, :64, :64],
    "last 64": lambda m, x: m.a(x)[:, :, -64:, -64:] + m.b(x)[:, :, -64:, -64:],
    "last 4 rows": lambda m, x: m.a(x)[:, :, -4:] + m.b(x)[:, :, -4:],
    "first 8 rows": lambda m, x: m.a(x)[:, :, :8] + m.b(x)[:, :, :8],
    "narrow": lambda m, x: m.a(x).narrow(2, 0, 7) + m.b(x).narrow(2, 0, 7),
    "from a 64th": lambda m, x: m.a(x)[:, :, x.shape[2] // 64 :] + m.b(x)[:, :, x.shape[2] // 64 :],
    "pooled to 4": lambda m, x: F.adaptive_avg_pool2d(m.a(x), 4) + F.adaptive_avg_pool2d(m.b(x), 4),
    "plus the height": lambda m, x: m.a(x) + torch.full_like(x[:, :1], x.shape[2]),
    "plus a count": lambda m, x: m.a(x) + m.b(x) + x.new_ones(x.shape[2]).sum(),
}


@pytest.mark.parametrize("example", [None, 1, 2])
@pytest.mark.parametrize("name", OF_THE_BATCH)
def test_what_mixes_samples_is_not_fused_away(name: str, example: int | None) -> None:
    channels = 1 if name in ("flip", "roll", "mean", "cumsum") else 4
    agrees(Model(OF_THE_BATCH[name]), None if example is None else torch.randn(example, channels, 8, 8), channels)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", OF_POSITIONS)
def test_what_means_certain_positions_or_sizes_is_not_fused_away(name: str, with_example: bool, verify: bool) -> None:
    agrees(Model(OF_POSITIONS[name]), torch.randn(1, 4, 8, 8) if with_example else None, verify=verify)


@pytest.mark.parametrize(
    "steps", [lambda w: torch.round(w / 0.1) * 0.1, lambda w: (w >= 0.7).float(), lambda w: w.to(torch.int8).float()]
)
def test_weights_that_are_rounded_to_steps_stay_the_model_s_own(steps: Callable[[Tensor], Tensor]) -> None:
    w = nn.Parameter(torch.tensor([0.35, 0.25, 0.7, 1.0] * 4).view(4, 4, 1, 1))
    agrees(Model(lambda m, x: F.conv2d(x, steps(m.w)) + m.a(x), w=w), torch.randn(1, 4, 8, 8))


def test_a_complex_constant_keeps_its_imaginary_part() -> None:
    model = Model(lambda m, x: m.a(x) * m.k, k=torch.tensor(1 + 2j)).eval()
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(reparam_compiler.fuse(model, (x,), policy="always")(x), model(x))


def test_a_constant_of_a_wider_dtype_makes_a_wider_value() -> None:
    agrees(Model(lambda m, x: m.a(x) + m.b(x) + torch.ones_like(x[:, :1], dtype=torch.float64)), torch.randn(1, 4, 8, 8))


@pytest.mark.parametrize(
    "view", [lambda y: torch.einsum("nchw->nchw", y), lambda y: torch.broadcast_tensors(y, y)[0], torch.positive]
)
def test_a_view_that_is_written_through_is_seen(view: Callable[[Tensor], Tensor]) -> None:
    def body(m: Model, x: Tensor) -> Tensor:
        y = m.a(x)
        v = view(y)
        y.mul_(2)
        return torch.cat([m.b(y) + m.c(y), v], 1)

    agrees(Model(body), None, verify=False)


@pytest.mark.parametrize("scale", [1e3, 1e-4])
def test_half_precision_weights_neither_overflow_nor_vanish(scale: float) -> None:
    model = Model(lambda m, x: m.b(x) * scale).eval()
    with torch.no_grad():
        model.b.weight.mul_(1e3 if scale > 1 else 1e-3)
    half = model.half()
    fused = reparam_compiler.fuse(half, policy="always")
    x = torch.randn(1, 4, 8, 8, dtype=torch.float16) * (1e-3 if scale > 1 else 1e3)
    with torch.no_grad():
        assert relative_error(half(x).float(), fused(x).float()) < 5e-3


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 1, 1, 4)])
def test_a_constant_of_more_axes_adds_them(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(3, 4)
    model = Model(lambda m, x: m.l(x) + m.k, l=linear, k=torch.randn(shape)).eval()
    x = torch.randn(2, 3)
    assert reparam_compiler.fuse(model, (x,), policy="always", verify=False)(x).shape == model(x).shape


def test_the_caller_s_input_is_written_to_as_before() -> None:
    model = Model(lambda m, x: m.a(x.mul_(2)) + m.b(x)).eval()
    program = torch.export.export(model, (torch.randn(1, 4, 8, 8),))
    x = torch.randn(1, 4, 8, 8)
    for run in (reparam_compiler.fuse(program, policy="always").module(), reparam_compiler.fuse(model, policy="always")):
        given = x.clone()
        run(given)
        assert torch.equal(given, x * 2)


def test_the_caller_s_model_is_not_run() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale, self.calls = nn.Conv2d(4, 4, 1), nn.Parameter(torch.ones(1)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            with torch.no_grad():
                self.scale.add_(1)
            return self.conv(x) * self.scale

    model = Counts().eval()
    reparam_compiler.fuse(model, (torch.randn(1, 4, 8, 8),))
    assert model.calls == 0
    assert torch.equal(model.scale.detach(), torch.ones(1))


def test_a_graph_module_keeps_its_hooks() -> None:
    traced = torch.fx.symbolic_trace(Model(lambda m, x: m.a(x) + m.b(x)).eval())
    traced.register_forward_hook(lambda module, given, result: result * 3)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert relative_error(traced(x), reparam_compiler.fuse(traced)(x)) < FLOAT32


def test_a_call_that_is_more_than_forward_is_kept() -> None:
    class Doubles(Model):
        def __call__(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return 2 * super().__call__(x)

    model = Doubles(lambda m, x: m.a(x) + m.b(x)).eval()
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert relative_error(model(x), reparam_compiler.fuse(model)(x)) < FLOAT32


def test_weights_of_a_frozen_model_stay_frozen() -> None:
    model = Model(lambda m, x: m.a(x) + m.b(x)).eval().requires_grad_(False)
    example = (torch.randn(1, 4, 8, 8),)
    fused = reparam_compiler.fuse(model, example)
    program = reparam_compiler.fuse(torch.export.export(model, example))
    assert not any(parameter.requires_grad for parameter in (*fused.parameters(), *program.parameters()))
    fused(*example).numpy()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_holds_computed_tensors_is_copied() -> None:
    model = Model(lambda m, x: m.n(x) + m.b(x), n=nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1)))
    agrees(model, torch.randn(1, 4, 8, 8))


def test_what_cannot_be_copied_is_a_typed_error() -> None:
    import threading

    with pytest.raises(UnsupportedModelError, match="a copy of Model cannot be made"):
        reparam_compiler.fuse(Model(lambda m, x: m.a(x), lock=threading.Lock()).eval())


def test_dropout_that_always_drops_is_compared_with_the_same_draws() -> None:
    reparam_compiler.fuse(Model(lambda m, x: F.dropout(m.a(x) + m.b(x), 0.5, True)).eval(), (torch.randn(1, 4, 8, 8),))


def test_a_draw_is_never_frozen() -> None:
    model = Model(lambda m, x: m.a(x) + m.b(x) + x.new_zeros(1).bernoulli_(0.5)).eval()
    fused = reparam_compiler.fuse(model, policy="always")
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert len({float(fused(x).sum()) for _ in range(40)}) > 1


@pytest.mark.parametrize("inputs", [{"x": torch.zeros(1, 4, 8, 8)}, "x", 3])
def test_example_inputs_are_a_tuple(inputs: object) -> None:
    with pytest.raises(UnsupportedModelError, match="expected a tuple"):
        reparam_compiler.fuse(Model(lambda m, x: m.a(x)).eval(), inputs)  # type: ignore[arg-type]


def test_a_tensor_alone_is_one_example_input() -> None:
    agrees(Model(lambda m, x: m.a(x) + m.b(x)), None)
    _, report = reparam_compiler.fuse(
        Model(lambda m, x: m.a(x) + m.b(x)).eval(),
        torch.randn(3, 4, 8, 8),
        return_report=True,  # type: ignore[arg-type]
    )
    assert report.fusions
    assert report.whole_model is not None
