"""A module that no tracer takes is exported for inputs of other sizes too, where its code allows that."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.frontends.torch.tracing.exporting import NotExportedError, exported
from tests.support.small_models import normal

X = normal(1, 4, 6, 8).float()
Wiring = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """A conv, and code round it."""

    def __init__(self, wiring: Wiring) -> None:
        super().__init__()
        self.conv, self.wiring = nn.Conv2d(4, 4, 3, padding=1), wiring
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return self.wiring(self, x) * scale


def padded(m: Net, x: Tensor) -> Tensor:
    return m.conv(F.pad(x, (0, 1)) if x.shape[-1] % 2 else x)


def in_pieces(m: Net, x: Tensor) -> Tensor:
    return torch.cat([m.conv(part) for part in list(x.chunk(2))])


def attention(m: Net, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = m.conv(x).reshape(n, c, h * w).transpose(1, 2)
    return torch.softmax(y @ y.transpose(1, 2) / int(c**0.5), -1) @ y


def counted(m: Net, x: Tensor) -> Tensor:
    m.count += 1
    return m.conv(x) * m.count


def made(wiring: Wiring, *inputs: Any) -> tuple[Net, Any]:
    torch.manual_seed(0)
    model = Net(wiring).eval()
    return model, exported(model, inputs, copy=False).graph_module


@pytest.mark.parametrize("wiring", [padded, attention])
def test_batch_and_spatial_sizes_are_open(wiring: Wiring) -> None:
    model, module = made(wiring, X)
    for x in (X, normal(3, 4, 6, 8).float(), normal(2, 4, 5, 4).float()):
        torch.testing.assert_close(module(x), model(x))
    said = "so it was exported, and train() and eval() change nothing in it: the result takes inputs of Nx4xNxN"
    assert module.meta["remarks"] == (f"no trace will do for Net, {said}",)
    assert not any(part.training for part in module.modules())
    x = X.clone().requires_grad_()
    torch.testing.assert_close(module.train()(x), model(x))
    assert module.training
    assert not module.eval().training


def test_many_reshapes_leave_the_batch_open_alone() -> None:
    """Their algebra takes torch.export minutes in a net of windows."""

    def windows(m: Net, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        for _ in range(3):
            x = (
                m.conv(x)
                .reshape(n, c, h // 2, 2, w // 2, 2)
                .transpose(3, 4)
                .reshape(n, c, -1, 4)
                .softmax(-1)
                .reshape(n, c, h, w)
            )
        return x if h > 2 else x + 1

    model, module = made(windows, X)
    assert module.meta["remarks"][0].endswith("the result takes inputs of Nx4x6x8")
    x = normal(3, 4, 6, 8).float()
    torch.testing.assert_close(module(x), model(x))


def test_the_caller_s_inputs_are_not_marked_as_open() -> None:
    """An export that fails leaves its marks on the tensors that it is given: every later export of them would be open too."""
    x = X.clone()
    with pytest.raises(NotExportedError):
        made(lambda m, x: m.conv(x) if x.sum() > 0 else x, x)
    assert vars(x) == {}


def test_a_size_that_the_code_decides_by_is_guarded() -> None:
    _, module = made(padded, X)
    with pytest.raises(AssertionError, match="Guard failed"):
        module(normal(2, 4, 6, 7).float())


def test_an_export_for_two_that_refuses_one_is_made_for_one() -> None:
    model, module = made(in_pieces, X)
    torch.testing.assert_close(module(X), model(X))
    wider = normal(1, 4, 6, 9).float()
    torch.testing.assert_close(module(wider), model(wider))
    assert module.meta["remarks"][0].endswith("the result takes inputs of 1x4xNxN")


def test_what_the_trial_run_writes_to_is_as_it_was() -> None:
    model, module = made(counted, X)
    assert float(module.count) == float(model.count) == 0
    again = deep_copy(model)
    torch.testing.assert_close(module(X), again(X))


def test_inputs_that_are_no_tensors_stay_as_they_are() -> None:
    model, module = made(attention, X, 2.0)
    x = normal(3, 4, 2, 4).float()
    torch.testing.assert_close(module(x, 2.0), model(x, 2.0))


def test_a_length_that_python_asks_for_leaves_the_batch_open() -> None:
    model, module = made(lambda m, x: m.conv(x).reshape(len(x), -1), X)
    x = normal(3, 4, 6, 8).float()
    torch.testing.assert_close(module(x), model(x))
    assert "Nx4x" in module.meta["remarks"][0]


def test_an_exported_form_takes_keywords_and_defaults_as_the_model_does() -> None:
    model, module = made(padded, X)
    for form in (module, deep_copy(module)):
        torch.testing.assert_close(form(x=X), model(X))
    for args, kwargs in (((X, 1.0), {}), ((X,), {"scale": 1.0}), ((), {"scale": 1.0, "x": X})):
        torch.testing.assert_close(module(*args, **kwargs), model(X))
    with pytest.raises(TypeError, match=r"^scale=2\.0: it was exported without, for scale=1\.0$"):
        module(X, scale=2.0)
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        module()


def test_inputs_in_lists_mappings_and_rows_have_open_sizes() -> None:
    class Rows(nn.Module):
        def forward(self, x: dict[str, Tensor], *more: list[Tensor]) -> Tensor:
            y = x["a"] + sum(part for row in more for part in row)
            return y[:, :, 1:] if y.shape[-1] % 2 == 0 else y

    module = exported(Rows(), ({"a": X}, [X, X], [X]), copy=False).graph_module
    x = normal(3, 4, 5, 8).float()
    torch.testing.assert_close(module({"a": x}, [x, x], [x]), Rows()({"a": x}, [x, x], [x]))


def test_sizes_that_the_model_fixes_are_said() -> None:
    def fixed(m: Net, x: Tensor) -> Tensor:
        assert tuple(x.shape) == (1, 4, 6, 8)
        return m.conv(x)

    _, module = made(fixed, X)
    assert module.meta["remarks"][0].endswith("the result takes inputs of the example's shapes only (1x4x6x8)")


def test_why_torch_export_does_not_take_a_module_is_said() -> None:
    def decides(m: Net, x: Tensor) -> Tensor:
        return m.conv(x) if x.sum() > 0 else x

    with pytest.raises(NotExportedError, match="data-dependent"):
        made(decides, X)
