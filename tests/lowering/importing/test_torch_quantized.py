"""Programs that torch's quantizers export: their layers multiply bytes, and give the bytes that torch gives."""

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # declares the ops
from torch import Tensor, nn

pytest.importorskip("tvm")

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.quantized import as_arithmetic, byte_layers

pytestmark = pytest.mark.tvm
OPS = torch.ops.quantized_decomposed
S8, U8 = (-128, 127, torch.int8), (0, 255, torch.uint8)
NARROW = (-127, 127, torch.int8)


def again(x: Tensor, scale: float, zero: int, kind: tuple[int, int, torch.dtype]) -> Tensor:
    made: Tensor = OPS.dequantize_per_tensor(OPS.quantize_per_tensor(x, scale, zero, *kind), scale, zero, *kind)
    return made


class Net(nn.Module):
    """A conv by channel and a dense layer, whose result is quantized to less than a byte holds."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.register_buffer("kernel", torch.randint(-127, 128, (12, 8, 3, 3), generator=source, dtype=torch.int8))
        self.register_buffer("scales", torch.linspace(0.004, 0.02, 12))
        self.register_buffer("zeros", torch.zeros(12, dtype=torch.int64))
        self.register_buffer("matrix", torch.randint(-127, 128, (5, 12), generator=source, dtype=torch.int8))
        self.bias = nn.Parameter(torch.randn(12, generator=source))

    def forward(self, x: Tensor) -> Tensor:
        kernel = OPS.dequantize_per_channel(self.kernel, self.scales, self.zeros, 0, *NARROW)
        y = torch.relu(nn.functional.conv2d(again(x, 0.0213, 120, U8), kernel, self.bias, padding=1))
        pooled = again(again(y, 0.0517, -128, S8).mean((2, 3)), 0.0331, -100, S8)
        y = nn.functional.linear(pooled, OPS.dequantize_per_tensor(self.matrix, 0.013, 0, *NARROW))
        result: Tensor = OPS.quantize_per_tensor(y, 0.0171, 0, *NARROW)
        return result


def test_an_exported_net_gives_the_bytes_of_torch() -> None:
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(3))
    program = torch.export.export(Net().eval(), (x,))
    assert byte_layers(as_arithmetic(to_relax(program).module, integers=True)) == 2
    (found,) = lowering.compile(program).run(x.numpy())
    expected = Net()(x).numpy()
    assert found.dtype == np.int8
    assert expected.min() == -127
    assert np.abs(found.astype(int) - expected).max() <= 1


class Wide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = OPS.quantize_per_tensor(x, 0.01, 0, -32768, 32767, torch.int16)
        return made


def test_wider_integers_are_refused_by_name() -> None:
    program = torch.export.export(Wide(), (torch.zeros(2, 3),))
    with pytest.raises(LoweringError, match=r"quantize_per_tensor.*a tensor quantized to int16; expected int8 or uint8"):
        to_relax(program)
