"""The phases for a GPU: NHWC inside, convs by rule, TVM's fusion and the schedules of `gpu.schedules` for the rest.

simplify -> channels last -> convs to kernels -> legalize, fuse -> measured schedules -> schedules by rule
"""

from typing import Any

from tvm import relax
from tvm.ir.transform import Sequential
from tvm.relax.backend.gpu_generic import pipeline

from reparam_compiler.lowering.conv.accuracy import MAX_ERROR
from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.gpu.kernels import convs_to_gpu_kernels
from reparam_compiler.lowering.gpu.plans import plans
from reparam_compiler.lowering.gpu.schedules import schedule_gpu
from reparam_compiler.lowering.gpu.tiles import Chip
from reparam_compiler.lowering.relax.layout import channels_last, simplify
from reparam_compiler.lowering.relax.quantized import as_arithmetic
from reparam_compiler.lowering.search.rest import with_records
from reparam_compiler.lowering.search.winners import Measured


def prepared(module: Any) -> Any:
    """The phases before kernels are chosen."""
    return channels_last(simplify(as_arithmetic(module, integers=False)))


def lowered(module: Any, target: Any, chip: Chip, measured: Measured | None = None, max_error: float = MAX_ERROR) -> Any:
    """What `prepared` gave -> Relax that calls scheduled kernels only."""
    return schedule_gpu(with_records(with_kernels(module, target, chip, measured, max_error), measured, target))


def with_kernels(module: Any, target: Any, chip: Chip, measured: Measured | None = None, max_error: float = MAX_ERROR) -> Any:
    """Kernels for the convs; what is left, legalized and fused, has no schedule yet."""
    passes = [
        *pipeline.library_dispatch_passes(target),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(),
    ]
    found = measured or Measured()

    def rule(shape: ConvShape) -> list[Any]:
        ours = plans(shape, chip)
        return [*found.points(shape, ours[0]), *ours]

    return Sequential(passes)(convs_to_gpu_kernels(module, chip, rule, max_error))
