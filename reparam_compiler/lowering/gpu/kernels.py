"""The Relax pass that gives every conv and dense layer of constant weight its GPU kernel, with what follows it fused in.

    conv2d(x, W) -> add(b) -> add(residual) -> relu        becomes        call_tir(kernel, x, packed W, b, residual)

The sites are those of `conv_sites.find_conv_sites`. Weights are packed in numpy, once (`packing`), so that a tile's columns are
contiguous and no tile needs a guard on them.
"""

from typing import Any

from tvm.relax.expr_functor import mutator

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.conv.accuracy import MAX_ERROR, measured_error
from reparam_compiler.lowering.conv.algorithms import ConvShape, Step, Winograd
from reparam_compiler.lowering.gpu.conv import SUMS, gpu_conv, gpu_partial_conv, gpu_sum_of_pieces
from reparam_compiler.lowering.gpu.grouped import gpu_grouped_conv, is_narrow
from reparam_compiler.lowering.gpu.packing import PACKINGS
from reparam_compiler.lowering.gpu.plans import GpuPlan, GpuRule, WinogradGemm, has_tensor_cores
from reparam_compiler.lowering.gpu.tensor_cores import tensor_conv, tensor_partial_conv
from reparam_compiler.lowering.gpu.tiles import Chip, GpuTile
from reparam_compiler.lowering.gpu.winograd import (
    gpu_winograd_input,
    gpu_winograd_output,
    gpu_winograd_placed,
    gpu_winograd_sums,
    winograd_gemm,
)
from reparam_compiler.lowering.relax.conv_sites import ConvSite, ConvSiteRewriter, find_conv_sites, rewritten
from reparam_compiler.lowering.relax.packed import packed_constant
from reparam_compiler.lowering.runtime.stored import Packing

DTYPES = ("float32", "float16")
FEW_ROWS = 16  # rows of a dense layer below which a matrix-vector kernel reads the weights as fast and wastes no tile


def convs_to_gpu_kernels(module: Any, chip: Chip, rule: GpuRule, max_error: float = MAX_ERROR) -> Any:
    """Replace each site of `main` by calls of its scheduled kernels.

    rule: gives the plans of a shape, best first.
    max_error: the relative error that a Winograd form may have on a layer's weights; the implicit GEMM where none is within it.
    """
    sites = gpu_sites(module["main"])
    return rewritten(module, ConvsToGpuKernels(module, sites, chip, rule, max_error)) if sites else module


def gpu_sites(main: Any) -> list[ConvSite]:
    """The sites that a kernel of ours computes."""
    return [site for site in find_conv_sites(main, DTYPES) if not _is_vector(site)]


def gemm_packing(shape: ConvShape, tile: GpuTile) -> Packing:
    """How an implicit GEMM reads its weights."""
    return Packing("gemm", {"groups": shape.groups, "columns": tile.columns, "depth": tile.depth, "pieces": tile.pieces})


def winograd_packing(shape: ConvShape, form: Winograd, tile: GpuTile) -> Packing:
    """How the product of a Winograd conv reads them. tile: of the product."""
    of_tile = {"columns": tile.columns, "depth": tile.depth, "pieces": tile.pieces}
    return Packing("winograd_gemm", {"groups": shape.groups, "outputs": list(form.outputs), **of_tile})


def gemm_name(tile: GpuTile, on_tensor_cores: bool) -> str:
    """What a report calls an implicit GEMM."""
    name = "implicit GEMM on tensor cores" if on_tensor_cores else "implicit GEMM"
    return name if tile.pieces == 1 else f"{name} in {tile.pieces} pieces"


@mutator
class ConvsToGpuKernels(ConvSiteRewriter):  # type: ignore[misc, unused-ignore]
    """One kernel call a site, or several."""

    def __init__(self, module: Any, sites: list[ConvSite], chip: Chip, rule: GpuRule, max_error: float) -> None:
        super().__init__(module, sites)
        self.chip = chip
        self.rule = rule
        self.max_error = max_error

    def calls(self, site: ConvSite) -> Any:
        shape, data = site.shape, self.data(site)
        if is_narrow(shape):
            return self._narrow(site, data)
        plan, error = self._chosen(site)
        if isinstance(plan, WinogradGemm):
            return self._three_kernels(site, plan, error, data)
        flat = (shape.pixels, shape.groups, shape.group_out)
        return self._gemm(site, shape, data, plan, site.epilogue, self.operands(site, flat))

    def _narrow(self, site: ConvSite, data: Any) -> Any:
        shape, steps, flat = site.shape, site.epilogue, (site.shape.pixels, site.shape.groups, site.shape.group_out)
        kernel = self.kernel(site, (shape, steps), lambda: gpu_grouped_conv(shape, steps), "direct")
        weights = packed_constant(site.weight, Packing("grouped", {}), PACKINGS)
        return self.call(kernel, [data, weights, *self.operands(site, flat)], flat, shape.dtype)

    def _chosen(self, site: ConvSite) -> tuple[GpuPlan, float | None]:
        """The rule's first plan that is within the bound on the site's weights, and its error; a GEMM sums in float32."""
        for plan in self.rule(site.shape):
            if not isinstance(plan, WinogradGemm):
                return plan, None
            error = measured_error(site.weight, site.shape, plan.arithmetic)
            if error <= self.max_error:
                return plan, error
        raise LoweringError(f"{site}: found no plan that is a GEMM; expected one behind those by Winograd's transforms")

    def _three_kernels(self, site: ConvSite, plan: WinogradGemm, error: float | None, data: Any) -> Any:
        """Transform, GEMM, transform; of a dilated conv, whose outputs lie scattered, one more that puts them in place."""
        shape, steps, form = site.shape, site.epilogue, plan.arithmetic
        gemm = winograd_gemm(shape, form)
        height, width = form.transforms(shape)
        spread = (gemm.pixels, height.size, width.size)
        transform = self.kernel(site, ("in", shape, form), lambda: gpu_winograd_input(shape, form), suffix="_input")
        source = self.call(transform, [data], (*spread, shape.channels_in), shape.dtype)
        source = self.shaped(source, (gemm.batch, 1, 1, gemm.channels_in))
        products = self._gemm(site, gemm, source, plan, (), [], error)
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
        plan: GpuPlan,
        steps: tuple[Step, ...],
        operands: list[Any],
        error: float | None = None,
    ) -> Any:
        """The implicit GEMM of `shape`, which is the site's conv or the product of its Winograd conv."""
        on_tensor_cores, tile = has_tensor_cores(shape, self.chip), plan.tile
        if isinstance(plan, WinogradGemm):
            packing, algorithm = winograd_packing(site.shape, plan.arithmetic, tile), str(plan)
        else:
            packing, algorithm = gemm_packing(shape, tile), gemm_name(tile, on_tensor_cores)
        packed = packed_constant(site.weight, packing, PACKINGS)
        size = (shape.pixels, shape.groups, shape.group_out)
        if tile.pieces == 1:
            whole = tensor_conv if on_tensor_cores else gpu_conv
            kernel = self.kernel(site, (shape, steps, tile), lambda: whole(shape, tile, steps), algorithm, error=error)
            return self.call(kernel, [data, packed, *operands], size, shape.dtype)
        part = tensor_partial_conv if on_tensor_cores else gpu_partial_conv
        kernel = self.kernel(site, (shape, tile), lambda: part(shape, tile), algorithm, error=error)
        rows, columns, _ = tile.padded(shape)
        sums = self.call(kernel, [data, packed], (tile.pieces * shape.groups, rows, columns), SUMS)
        key = ("add", *size, shape.dtype, steps, tile)
        add = self.kernel(site, key, lambda: gpu_sum_of_pieces(shape, tile, steps), suffix="_sum")
        return self.call(add, [sums, *operands], size, shape.dtype)


def _is_vector(site: ConvSite) -> bool:
    """Whether a layer is a dense one over few rows, which dlight's matrix-vector rule does."""
    return len(site.data.ty.shape.values) < 4 and site.shape.pixels < FEW_ROWS
