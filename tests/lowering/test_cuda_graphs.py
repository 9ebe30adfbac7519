"""Models of batch 1 are launched as one CUDA graph, unless the caller's own setting says otherwise."""

import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from tvm.ir.transform import PassContext

from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.gpu.cuda.graphs import SETTING, has_batch_one
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.target import resolve
from tests.support.lowered import lower

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize(("batch", "setting", "captured"), [(1, {}, True), (2, {}, False), (1, {SETTING: False}, False)])
def test_kernels_between_input_and_output_are_captured_at_batch_one(
    batch: int, setting: dict[str, bool], captured: bool
) -> None:
    target = resolve("cuda")
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))).eval()
    with target, PassContext(config=setting):
        module = lower(to_relax(model, torch.zeros(batch, 8, 9, 9)).module, target)
        final = backend_for(target).vm_passes()(module)
    names = [str(variable.name_hint) for variable, _ in final.functions_items()]
    assert any("cuda_graph_capture" in name for name in names) == captured
    if captured:
        (body,) = (str(func) for variable, func in final.functions_items() if "capture" in variable.name_hint)
        assert body.count("conv_3x3_8_8_at_9x9") == 4
        assert "transpose" not in body  # what reads the caller's input or makes the output stays outside


@pytest.mark.parametrize(("shapes", "one"), [([(1, 3), (1, 4)], True), ([(1, 3), (2, 4)], False), ([()], False)])
def test_every_input_has_a_batch_of_one(shapes: list[tuple[int, ...]], one: bool) -> None:
    class Twice(nn.Module):
        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(x * 2 for x in inputs)

    assert has_batch_one(to_relax(Twice().eval(), tuple(map(torch.zeros, shapes))).module) == one
