"""The Relax pass that gives every conv and dense layer of constant weight its GPU kernel, with what follows it fused in.

    conv2d(x, W) -> add(b) -> add(residual) -> relu        becomes        call_tir(kernel, x, packed W, b, residual)

The sites are those of `conv_sites.find_conv_sites`. Weights are packed in numpy, once, so that a tile's columns are contiguous
and no tile needs a guard on them:

    O kh kw Ig -> [pieces G, K'/pieces, O']   zero rows and columns up to whole tiles        implicit GEMM
    O kh kw Ig -> [kh, kw, Ig, O]                                                          few channels a group
"""

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import mutator

from reparam_compiler.lowering.conv.accuracy import MAX_ERROR, measured_error
from reparam_compiler.lowering.conv.algorithms import ConvShape, Step, Winograd
from reparam_compiler.lowering.gpu.conv import SUMS, gpu_conv, gpu_partial_conv, gpu_sum_of_pieces
from reparam_compiler.lowering.gpu.grouped import gpu_grouped_conv, is_narrow
from reparam_compiler.lowering.gpu.tensor_cores import tensor_conv, tensor_partial_conv
from reparam_compiler.lowering.gpu.tiles import Chip, GpuTile, choose_gpu_tile
from reparam_compiler.lowering.gpu.winograd import (
    choose_gpu_winograd,
    gpu_winograd_input,
    gpu_winograd_output,
    gpu_winograd_placed,
    gpu_winograd_sums,
    transformed_weights,
    winograd_gemm,
)
from reparam_compiler.lowering.relax.conv_sites import ConvSite, ConvSiteRewriter, Weights, find_conv_sites, rewritten

DTYPES = ("float32", "float16")
FEW_ROWS = 16  # rows of a dense layer below which a matrix-vector kernel reads the weights as fast and wastes no tile


def convs_to_gpu_kernels(module: Any, chip: Chip, max_error: float = MAX_ERROR) -> Any:
    """Replace each site of `main` by calls of its scheduled kernels.

    max_error: the relative error that a Winograd form may have on a layer's weights; the implicit GEMM where none is within it.
    """
    sites = [site for site in find_conv_sites(module["main"], DTYPES) if not _is_vector(site)]
    if not sites:
        return module
    return rewritten(module, ConvsToGpuKernels(module, sites, chip, max_error))


def pack_gemm(weight: Weights, shape: ConvShape, tile: GpuTile) -> Weights:
    """`O kh kw Ig` -> `[pieces G, K'/pieces, O']`, contiguous, padded with zeros to whole tiles."""
    _, columns, depth = tile.padded(shape)
    k = shape.kernel[0] * shape.kernel[1] * shape.group_in
    grouped = weight.reshape(shape.groups, shape.group_out, k).transpose(0, 2, 1)
    padded = np.pad(grouped, [(0, 0), (0, depth - k), (0, columns - shape.group_out)])
    by_piece = padded.reshape(shape.groups, tile.pieces, depth // tile.pieces, columns).transpose(1, 0, 2, 3)
    return np.ascontiguousarray(by_piece.reshape(tile.pieces * shape.groups, depth // tile.pieces, columns))


def pack_grouped(weight: Weights) -> Weights:
    """`O kh kw Ig` -> `[kh, kw, Ig, O]`, contiguous."""
    return np.ascontiguousarray(weight.transpose(1, 2, 3, 0))


def gemm_name(shape: ConvShape, tile: GpuTile) -> str:
    """What a report calls an implicit GEMM."""
    name = "implicit GEMM on tensor cores" if shape.dtype == "float16" else "implicit GEMM"
    return name if tile.pieces == 1 else f"{name} in {tile.pieces} pieces"


@mutator
class ConvsToGpuKernels(ConvSiteRewriter):  # type: ignore[misc, unused-ignore]
    """One kernel call a site, or several."""

    def __init__(self, module: Any, sites: list[ConvSite], chip: Chip, max_error: float) -> None:
        super().__init__(module, sites)
        self.chip = chip
        self.max_error = max_error

    def calls(self, site: ConvSite) -> Any:
        shape, data = site.shape, self.data(site)
        if is_narrow(shape):
            return self._narrow(site, data)
        winograd = self._winograd(site)
        if winograd is not None:
            return self._three_kernels(site, *winograd, data)
        flat = (shape.pixels, shape.groups, shape.group_out)
        return self._gemm(site, shape, data, site.weight, site.epilogue, self.operands(site, flat))

    def _narrow(self, site: ConvSite, data: Any) -> Any:
        shape, steps, flat = site.shape, site.epilogue, (site.shape.pixels, site.shape.groups, site.shape.group_out)
        kernel = self.kernel(site, (shape, steps), lambda: gpu_grouped_conv(shape, steps), "direct")
        return self.call(kernel, [data, relax.const(pack_grouped(site.weight)), *self.operands(site, flat)], flat, shape.dtype)

    def _winograd(self, site: ConvSite) -> tuple[Winograd, float] | None:
        """The cheapest form that is estimated to beat the GEMM and is within the bound on the site's weights, and its error."""
        for form in choose_gpu_winograd(site.shape, self.chip):
            error = measured_error(site.weight, site.shape, form)
            if error <= self.max_error:
                return form, error
        return None

    def _three_kernels(self, site: ConvSite, form: Winograd, error: float, data: Any) -> Any:
        """Transform, GEMM, transform; of a dilated conv, whose outputs lie scattered, one more that puts them in place."""
        shape, steps, gemm = site.shape, site.epilogue, winograd_gemm(site.shape, form)
        height, width = form.transforms(shape)
        spread = (gemm.pixels, height.size, width.size)
        transform = self.kernel(site, ("in", shape, form), lambda: gpu_winograd_input(shape, form), suffix="_input")
        source = self.call(transform, [data], (*spread, shape.channels_in), shape.dtype)
        source = self.shaped(source, (gemm.batch, 1, 1, gemm.channels_in))
        weight = transformed_weights(site.weight, shape, form)
        products = self._gemm(site, gemm, source, weight, (), [], str(form), error)
        channels = (shape.groups, shape.group_out)
        products = self.shaped(products, (*spread, *channels))
        size = (shape.batch, shape.out_height, shape.out_width, *channels)
        operands = self.operands(site, size)
        if shape.dilation == (1, 1):
            last = self.kernel(
                site, ("out", shape, form, steps), lambda: gpu_winograd_output(shape, form, steps), suffix="_output"
            )
            return self.call(last, [products, *operands], size, shape.dtype)
        back = self.kernel(site, ("sums", shape, form), lambda: gpu_winograd_sums(shape, form), suffix="_output")
        sums = self.call(back, [products], (gemm.pixels, *form.outputs, *channels), shape.dtype)
        place = self.kernel(
            site, ("place", shape, form, steps), lambda: gpu_winograd_placed(shape, form, steps), suffix="_placed"
        )
        return self.call(place, [sums, *operands], size, shape.dtype)

    def _gemm(
        self,
        site: ConvSite,
        shape: ConvShape,
        data: Any,
        weight: Weights,
        steps: tuple[Step, ...],
        operands: list[Any],
        name: str = "",
        error: float | None = None,
    ) -> Any:
        """The implicit GEMM of `shape`, which is the site's conv or, named by its form, the product of its Winograd conv."""
        half = shape.dtype == "float16"
        tile = choose_gpu_tile(shape, self.chip, tensor_cores=half)
        packed = relax.const(pack_gemm(weight, shape, tile))
        algorithm = name or gemm_name(shape, tile)
        size = (shape.pixels, shape.groups, shape.group_out)
        if tile.pieces == 1:
            whole = tensor_conv if half else gpu_conv
            kernel = self.kernel(site, (shape, steps, tile), lambda: whole(shape, tile, steps), algorithm, error=error)
            return self.call(kernel, [data, packed, *operands], size, shape.dtype)
        part = tensor_partial_conv if half else gpu_partial_conv
        kernel = self.kernel(site, (shape, tile), lambda: part(shape, tile), algorithm, error=error)
        rows, columns, _ = tile.padded(shape)
        sums = self.call(kernel, [data, packed], (tile.pieces * shape.groups, rows, columns), SUMS)
        key = ("add", *size, shape.dtype, steps, tile)
        add = self.kernel(site, key, lambda: gpu_sum_of_pieces(shape, tile, steps), suffix="_sum")
        return self.call(add, [sums, *operands], size, shape.dtype)


def _is_vector(site: ConvSite) -> bool:
    """Whether a layer is a dense one over few rows, which dlight's matrix-vector rule does."""
    return len(site.data.ty.shape.values) < 4 and site.shape.pixels < FEW_ROWS
