"""The Relax pass that gives every conv and dense layer of constant weight its CPU kernel, with what follows it fused in.

    conv2d(x, W) -> add(b) -> add(residual) -> relu        becomes        call_tir(conv, x, packed W, b, residual)

A layer takes the first algorithm of a rule whose error on the layer's own weights is within the bound; where none is, the
direct form. How its weights are packed for it is said in `packing`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import mutator

from reparam_compiler.lowering.conv.accuracy import MAX_ERROR, measured_error
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Direct, Step, Tile
from reparam_compiler.lowering.conv.choice import candidates, cycles, direct_form, with_packing
from reparam_compiler.lowering.cpu.depthwise import depthwise_columns, depthwise_conv
from reparam_compiler.lowering.cpu.dots import dots_conv, dots_form, has_dots, offset_of, totals_of
from reparam_compiler.lowering.cpu.integer_sites import in_single, of_bytes, split
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.packing import PACKINGS, narrowed, widened
from reparam_compiler.lowering.cpu.requantized import requantized
from reparam_compiler.lowering.cpu.schedules import direct_conv
from reparam_compiler.lowering.cpu.winograd import winograd_conv
from reparam_compiler.lowering.relax.conv_sites import (
    DTYPES,
    INTEGERS,
    ConvSite,
    ConvSiteRewriter,
    Weights,
    find_conv_sites,
    rewritten,
)
from reparam_compiler.lowering.relax.epilogues import constant_of
from reparam_compiler.lowering.relax.packed import packed_constant, packings_of
from reparam_compiler.lowering.runtime.stored import Packing

DOTS = "dot products of bytes"
"""What the kernel of a layer of bytes computes by, where there is an instruction for it."""
AlgorithmRule = Callable[[ConvShape, VectorUnit], Sequence[Algorithm]]


def convs_to_kernels(module: Any, unit: VectorUnit, rule: AlgorithmRule = candidates, *, max_error: float = MAX_ERROR) -> Any:
    """Replace each site of `main` by a call of its scheduled kernel.

    rule: gives the algorithms of a shape, best first.
    max_error: the relative error that an algorithm may have on a layer's weights; the direct form where none is within it.
    """
    sites = find_conv_sites(module["main"], (*DTYPES, INTEGERS), casts=True)
    if not sites:
        return module
    return rewritten(module, ConvsToKernels(module, sites, unit, rule, max_error))


def kernel_of(shape: ConvShape, algorithm: Algorithm, epilogue: Sequence[Step], unit: VectorUnit) -> Any:
    """The scheduled PrimFunc of a conv by an algorithm."""
    if isinstance(algorithm, Direct):
        return direct_conv(shape, algorithm, epilogue, unit)
    return winograd_conv(shape, algorithm, epilogue, unit)


def output_size(shape: ConvShape, algorithm: Algorithm) -> tuple[int, ...]:
    """Of that kernel's output: `blocks pixels/blocks G O/G`, or of a Winograd conv `N H W G O/G`."""
    blocks = algorithm.blocks(shape)
    pixels = (
        (blocks, shape.pixels // blocks) if isinstance(algorithm, Direct) else (shape.batch, shape.out_height, shape.out_width)
    )
    return (*pixels, shape.groups, shape.group_out)


def packing_of(shape: ConvShape, algorithm: Algorithm) -> Packing:
    """How that kernel reads `O kh kw Ig`."""
    if isinstance(algorithm, Direct):
        return Packing("columns", {"groups": shape.groups, "columns": algorithm.tile.columns})
    sizes = {"outputs": algorithm.outputs, "stride": shape.stride}
    return Packing("winograd", {"groups": shape.groups, "columns": algorithm.tile.columns, **sizes})


def packed_weights(weight: Weights, shape: ConvShape, algorithm: Algorithm) -> Weights:
    """`O kh kw Ig` as that kernel reads it."""
    return packing_of(shape, algorithm).of(weight, PACKINGS)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """How one site is computed.

    key: what its kernel depends on. size: of the kernel's output. make: builds the kernel.
    reads: whether the kernel reads bytes, with their zero point behind the weights; else it reads floats.
    tile: of dot products, whose columns have a start of their sums behind that.
    """

    algorithm: str
    key: tuple[Any, ...]
    packing: Packing
    size: tuple[int, ...]
    make: Callable[[], Any]
    error: float | None = None
    reads: bool = False
    tile: Tile | None = None


@mutator
class ConvsToKernels(ConvSiteRewriter):  # type: ignore[misc, unused-ignore]
    """One kernel call a site."""

    def __init__(self, module: Any, sites: list[ConvSite], unit: VectorUnit, rule: AlgorithmRule, max_error: float) -> None:
        super().__init__(module, sites)
        self.unit = unit
        self.rule = rule
        self.max_error = max_error

    def calls(self, site: ConvSite) -> Any:
        return self._of_integers(requantized(site)) if site.shape.dtype == INTEGERS else self._called(site)

    def _of_integers(self, site: ConvSite) -> Any:
        """By dot products, where there is an instruction; else as floats, whose sums below 2^24 are as exact."""
        if not has_dots(site.shape, self.unit):
            return self._called(in_single(site))
        if of_bytes(site.weight):
            return self._called(site)
        if (parts := split(site)) is None:
            return self._called(in_single(site))
        narrow, sums = parts
        return self._called(replace(narrow, operands=(self._called(sums, INTEGERS), *site.operands)))

    def _called(self, site: ConvSite, dtype: str = "") -> Any:
        """The call of a site's kernel. dtype: of the result, where it is not the site's."""
        data = self.data(site)
        plan = self._plan(site, str(data.ty.dtype))
        kernel = self.kernel(site, plan.key, plan.make, plan.algorithm, error=plan.error)
        bytes_of = site.shape.dtype == INTEGERS
        stored, packing = (site.weight.astype(np.int8), plan.packing) if bytes_of else narrowed(site.weight, plan.packing)
        if str(data.ty.dtype) != site.shape.dtype and not plan.reads:
            data = self._centred(data, site)
        parameters = [packed_constant(stored, packing, PACKINGS)]
        if plan.reads:
            parameters.append(self._zero(site))
        if plan.tile is not None:
            parameters.append(self._start(site, plan.tile, str(data.ty.dtype)))
        return self.call(kernel, [data, *parameters, *self.operands(site, plan.size)], plan.size, dtype or site.dtype)

    def _centred(self, data: Any, site: ConvSite) -> Any:
        """Bytes less their zero point, as floats."""
        floats = self.builder_.emit(relax.op.astype(data, site.shape.dtype))
        return floats if site.zero is None else self.builder_.emit(relax.op.subtract(floats, self._zero(site)))

    def _zero(self, site: ConvSite) -> Any:
        """The zero point of a site's bytes."""
        dtype = site.shape.dtype
        known = np.zeros(1) if site.zero is None else constant_of(site.zero)
        if known is not None:
            return relax.const(known.reshape(1).astype(dtype))
        return self.shaped(self.builder_.emit(relax.op.astype(self.visit_expr(site.zero), dtype)), (1,))

    def _start(self, site: ConvSite, tile: Tile, data: str) -> Any:
        """What the sums of each output start from."""
        zero, offset = self._zero(site), np.array([offset_of(data, self.unit)], INTEGERS)
        totals = totals_of(site.weight, site.shape, tile)
        if (known := constant_of(zero)) is not None:
            return relax.const(-(known + offset) * totals)
        moved = self.builder_.emit(relax.op.add(zero, relax.const(offset)))
        return self.builder_.emit(relax.op.multiply(moved, relax.const(-totals)))

    def _plan(self, site: ConvSite, data: str) -> _Plan:
        """data: the dtype of the site's input."""
        shape, epilogue, unit = site.shape, site.epilogue, self.unit
        if shape.depthwise:
            packing = Packing("channels", {"columns": depthwise_columns(shape, unit)})
            whole = (shape.batch, shape.out_height, shape.out_width, shape.channels_out, 1)
            kind = "" if data == shape.dtype else data
            make = functools.partial(depthwise_conv, shape, epilogue, unit, kind)
            return _Plan("depthwise", (shape, epilogue, kind), packing, whole, make, reads=bool(kind))
        if shape.dtype == INTEGERS:
            form = dots_form(shape, unit)
            packing = Packing("words", {"groups": shape.groups, "columns": form.tile.columns})
            make = functools.partial(dots_conv, shape, data, form, epilogue, unit)
            key = (shape, epilogue, form, data)
            return _Plan(DOTS, key, packing, output_size(shape, form), make, 0.0, reads=True, tile=form.tile)
        algorithm, error = self._chosen(site)
        packing, size = packing_of(shape, algorithm), output_size(shape, algorithm)
        name = "gemm" if shape.pointwise and isinstance(algorithm, Direct) else str(algorithm)
        make = functools.partial(kernel_of, shape, algorithm, epilogue, unit)
        return _Plan(name, (shape, epilogue, algorithm), packing, size, make, error)

    def _sharing(self, site: ConvSite, found: Sequence[Algorithm]) -> Algorithm:
        """The first found; where another variant has packed the weights, one that reads them so or pays for its own packing."""
        if found[0] != min(found, key=lambda form: cycles(site.shape, form, self.unit)):
            return found[0]  # a measurement, and no estimate, says that it is the best
        stored, _ = narrowed(site.weight, Packing("", {}))
        packings = [widened(packing) for packing in packings_of(stored) if packing is not None]
        if not packings:
            return found[0]
        columns = sorted({packing.arguments["columns"] for packing in packings})
        return with_packing(site.shape, self.unit, found, columns, lambda form: packing_of(site.shape, form) in packings)

    def _chosen(self, site: ConvSite) -> tuple[Algorithm, float | None]:
        """The rule's first algorithm within the bound, or one that shares weights; the direct form where none is within it."""
        found = self.rule(site.shape, self.unit)
        for algorithm in dict.fromkeys((self._sharing(site, found), *found)):
            error = measured_error(site.weight, site.shape, algorithm)
            if error <= self.max_error:
                return algorithm, error
        direct = direct_form(site.shape, self.unit)
        error = measured_error(site.weight, site.shape, direct)
        return direct, error if np.isfinite(error) else None
