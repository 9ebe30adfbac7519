"""A model in float16 on a CPU: what it sums is summed in float32 by the same kernels, and rounded to float16 once."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.single import sums_in_single

pytestmark = pytest.mark.tvm


class Sums(nn.Module):
    """Convs, a product of activations, a norm, pools, and a sum that leaves the range of float16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, groups=16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.depthwise(self.conv(x).relu())
        rows = self.norm(y.flatten(2).transpose(1, 2))
        mixed = (rows[:, :24] @ rows[:, :24].transpose(1, 2)).softmax(-1)
        return self.head(rows), mixed, y.mean((2, 3)), nn.functional.avg_pool2d(y, 2), (y.abs() * 4096).sum((1, 2, 3))


def test_sums_of_half_precision_are_torch_s_and_come_of_the_kernels_of_float32() -> None:
    torch.manual_seed(0)
    model, x = Sums().half().eval(), torch.randn(2, 3, 48, 40).half()
    compiled, exact = compile(model, x), Sums().eval()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        wanted, single = model(x), exact(x.float())
    for found, expected, wide in zip(compiled.run(x), wanted, single, strict=True):
        assert (found.dtype, found.shape) == (np.float16, tuple(expected.shape))
        assert np.array_equal(np.isinf(found), expected.isinf().numpy())
        finite = np.isfinite(found)
        assert np.abs(found - wide.numpy())[finite].max(initial=0) <= 4e-3 * wide.abs().max()
    assert np.isinf(compiled.run(x)[-1]).all()
    kinds = {kernel.name.split("_")[0] for kernel in compiled.kernels if kernel.algorithm != "general"}
    assert {"conv", "depthwise", "dense"} <= kinds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_of_half_precision_is_left_as_it_is(dtype: torch.dtype) -> None:
    module = to_relax(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(dtype).eval(), torch.zeros(1, 3, 6, 5, dtype=dtype)
    ).module
    assert sums_in_single(module)["main"].script(show_meta=False) == module["main"].script(show_meta=False)


def test_what_adds_nothing_up_stays_of_half_precision() -> None:
    module = to_relax(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval(), torch.zeros(1, 3, 6, 4).half()).module
    assert "float32" not in sums_in_single(module)["main"].script(show_meta=False)
