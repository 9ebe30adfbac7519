"""The phases for a CPU: NHWC inside, convs by the recipes, a schedule by rule for what is left.

quantized as arithmetic -> sums in float32 -> simplify -> channels last -> convs to kernels -> legalize -> measured schedules
-> schedules by rule
"""

import logging
from typing import Any

from tvm import relax
from tvm.ir.transform import Sequential
from tvm.relax.backend.cpu_generic import pipeline

from reparam_compiler.lowering.conv.accuracy import MAX_ERROR
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape
from reparam_compiler.lowering.conv.choice import candidates, computes
from reparam_compiler.lowering.conv.pointwise import legalizations
from reparam_compiler.lowering.cpu.families import CpuFamily
from reparam_compiler.lowering.cpu.kernels import AlgorithmRule, convs_to_kernels
from reparam_compiler.lowering.cpu.machine import DOTS, VectorUnit, vector_unit
from reparam_compiler.lowering.cpu.products import product_legalizations
from reparam_compiler.lowering.cpu.rest import schedule_rest
from reparam_compiler.lowering.cpu.rows import row_legalizations
from reparam_compiler.lowering.relax.layout import channels_last, simplify
from reparam_compiler.lowering.relax.quantized import as_arithmetic, byte_layers
from reparam_compiler.lowering.relax.single import in_single
from reparam_compiler.lowering.search.rest import with_records
from reparam_compiler.lowering.search.winners import Measured
from reparam_compiler.lowering.target import describe

log = logging.getLogger(__name__)


def prepared(module: Any) -> Any:
    """The phases before kernels are chosen."""
    return channels_last(simplify(in_single(as_arithmetic(module, integers=True))))


def lowered(
    module: Any,
    target: Any,
    measured: Measured | None = None,
    max_error: float = MAX_ERROR,
    family: CpuFamily | None = None,
) -> Any:
    """What `prepared` gave -> Relax that calls scheduled kernels only. family: of the CPU; None is what is shipped."""
    module = with_kernels(module, target, chosen(measured or Measured()), max_error=max_error, family=family)
    return schedule_rest(with_records(module, measured, target), vector_unit(target, family))


def chosen(measured: Measured) -> AlgorithmRule:
    """The rule of a conv's algorithm that prefers what was measured to be faster."""

    def rule(shape: ConvShape, unit: VectorUnit) -> list[Algorithm]:
        found = candidates(shape, unit)
        return [*(point for point in measured.points(shape, found[0]) if computes(shape, point)), *found]

    return rule


def with_kernels(
    module: Any,
    target: Any,
    rule: AlgorithmRule = candidates,
    *,
    max_error: float = MAX_ERROR,
    family: CpuFamily | None = None,
) -> Any:
    """Kernels for the convs; what is left, legalized to TIR, has no schedule yet."""
    unit = vector_unit(target, family)
    if unit.dots is None and (layers := byte_layers(module)):
        message = "%s has no dot products of bytes (%s): %d convs and dense layers of bytes are computed in float32"
        log.warning(message, describe(target), ", ".join(DOTS), layers)
    passes = [
        *pipeline.library_dispatch_passes(target),
        relax.transform.LegalizeOps(legalizations() | row_legalizations(unit) | product_legalizations(unit)),
        *pipeline.legalize_passes(target),
        relax.transform.RewriteDataflowReshape(),  # before the schedules: it knows a reshape by its plain loops
        relax.transform.DeadCodeElimination(),
    ]
    return Sequential(passes)(convs_to_kernels(module, unit, rule, max_error=max_error))


def vm_passes(target: Any) -> Any:
    """From calls of scheduled kernels to those of the virtual machine."""
    return Sequential(pipeline.dataflow_lower_passes(target) + pipeline.finalize_passes(target))
