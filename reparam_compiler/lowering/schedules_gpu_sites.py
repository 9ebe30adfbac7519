"""The Relax pass that gives every conv and dense layer of constant weight its GPU kernel, with what follows it fused in.

    conv2d(x, W) -> add(b) -> add(residual) -> relu        becomes        call_tir(kernel, x, packed W, b, residual)

The sites are those of `kernels.find_sites`. Weights are packed in numpy, once, so that a tile's columns are contiguous and
no tile needs a guard on them:

    O kh kw Ig -> [pieces G, K'/pieces, O']   zero rows and columns up to whole tiles        implicit GEMM
    O kh kw Ig -> [kh, kw, Ig, O]                                                          few channels a group
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.accuracy import measured_error
from reparam_compiler.lowering.algorithms import ConvShape, Step, Winograd
from reparam_compiler.lowering.kernels import ALGORITHM, ERROR, FLOPS, MAX_ERROR, Site, find_sites
from reparam_compiler.lowering.schedules_gpu_conv import SUMS, gpu_conv, gpu_partial_conv, gpu_sum_of_pieces
from reparam_compiler.lowering.schedules_gpu_grouped import gpu_grouped_conv, is_narrow
from reparam_compiler.lowering.schedules_gpu_tensor import tensor_conv, tensor_partial_conv
from reparam_compiler.lowering.schedules_gpu_tiles import Chip, GpuTile, choose_gpu_tile
from reparam_compiler.lowering.schedules_gpu_winograd import (
    choose_gpu_winograd,
    gpu_winograd_input,
    gpu_winograd_output,
    gpu_winograd_placed,
    gpu_winograd_sums,
    transformed_weights,
    winograd_gemm,
)

Weights = Shaped[np.ndarray, "..."]

DTYPES = ("float32", "float16")
FEW_ROWS = 16  # rows of a dense layer below which a matrix-vector kernel reads the weights as fast and wastes no tile


def convs_to_gpu_kernels(module: Any, target: Any, max_error: float = MAX_ERROR) -> Any:
    """Replace each site of `main` by calls of its scheduled kernels.

    max_error: the relative error that a Winograd form may have on a layer's weights; the implicit GEMM where none is within it.
    """
    sites = [site for site in find_sites(module["main"], DTYPES) if not _is_vector(site)]
    if not sites:
        return module
    rewriter = ConvsToGpuKernels(module, sites, Chip.of(str(target.attrs["arch"])), max_error)
    rewriter.builder_.update_func(module.get_global_var("main"), rewriter.visit_expr(module["main"]))
    module = relax.transform.DeadCodeElimination()(rewriter.builder_.get())
    for variable, error in rewriter.errors.items():
        module.update_func(variable, module[variable].with_attr(ERROR, error))
    return module


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
class ConvsToGpuKernels(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Emits the kernel calls of a site, and drops the bindings that the site absorbed."""

    def __init__(self, module: Any, sites: list[Site], chip: Chip, max_error: float) -> None:
        super().__init__(module)
        self.chip = chip
        self.max_error = max_error
        self.errors: dict[Any, float] = {}
        self.by_result = {site.result: site for site in sites}
        self.absorbed = {variable for site in sites for variable in site.absorbed}
        self.kernels: dict[tuple[Any, ...], Any] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self.absorbed:
            return
        site = self.by_result.get(binding.var)
        if site is None:
            super().visit_var_binding_(binding)
            return
        result = relax.op.reshape(self._kernel_calls(site), site.result.ty.shape)
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(result))

    def _kernel_calls(self, site: Site) -> Any:
        shape = site.shape
        data = self._shaped(self.visit_expr(site.data), (shape.batch, shape.height, shape.width, shape.channels_in))
        if is_narrow(shape):
            return self._narrow(site, data)
        winograd = self._winograd(site)
        if winograd is not None:
            return self._three_kernels(site, *winograd, data)
        flat = (shape.pixels, shape.groups, shape.group_out)
        return self._gemm(site, shape, data, site.weight, site.epilogue, self._operands(site, flat))

    def _narrow(self, site: Site, data: Any) -> Any:
        shape, steps, flat = site.shape, site.epilogue, (site.shape.pixels, site.shape.groups, site.shape.group_out)
        kernel = self._kernel(site, (shape, steps), lambda: gpu_grouped_conv(shape, steps), "direct")
        return self._call(
            kernel, [data, relax.const(pack_grouped(site.weight)), *self._operands(site, flat)], flat, shape.dtype
        )

    def _winograd(self, site: Site) -> tuple[Winograd, float] | None:
        """The cheapest form that is estimated to beat the GEMM and is within the bound on the site's weights, and its error."""
        for form in choose_gpu_winograd(site.shape, self.chip):
            error = measured_error(site.weight, site.shape, form)
            if error <= self.max_error:
                return form, error
        return None

    def _three_kernels(self, site: Site, form: Winograd, error: float, data: Any) -> Any:
        """Transform, GEMM, transform; of a dilated conv, whose outputs lie scattered, one more that puts them in place."""
        shape, steps, gemm = site.shape, site.epilogue, winograd_gemm(site.shape, form)
        height, width = form.transforms(shape)
        spread = (gemm.pixels, height.size, width.size)
        transform = self._kernel(site, ("in", shape, form), lambda: gpu_winograd_input(shape, form), "", "_input")
        source = self._call(transform, [data], (*spread, shape.channels_in), shape.dtype)
        source = self._shaped(source, (gemm.batch, 1, 1, gemm.channels_in))
        weight = transformed_weights(site.weight, shape, form)
        products = self._gemm(site, gemm, source, weight, (), [], str(form), error)
        channels = (shape.groups, shape.group_out)
        products = self._shaped(products, (*spread, *channels))
        size = (shape.batch, shape.out_height, shape.out_width, *channels)
        operands = self._operands(site, size)
        if shape.dilation == (1, 1):
            last = self._kernel(
                site, ("out", shape, form, steps), lambda: gpu_winograd_output(shape, form, steps), "", "_output"
            )
            return self._call(last, [products, *operands], size, shape.dtype)
        back = self._kernel(site, ("sums", shape, form), lambda: gpu_winograd_sums(shape, form), "", "_output")
        sums = self._call(back, [products], (gemm.pixels, *form.outputs, *channels), shape.dtype)
        place = self._kernel(
            site, ("place", shape, form, steps), lambda: gpu_winograd_placed(shape, form, steps), "", "_placed"
        )
        return self._call(place, [sums, *operands], size, shape.dtype)

    def _gemm(
        self,
        site: Site,
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
            kernel = self._kernel(site, (shape, steps, tile), lambda: whole(shape, tile, steps), algorithm, error=error)
            return self._call(kernel, [data, packed, *operands], size, shape.dtype)
        part = tensor_partial_conv if half else gpu_partial_conv
        kernel = self._kernel(site, (shape, tile), lambda: part(shape, tile), algorithm, error=error)
        rows, columns, _ = tile.padded(shape)
        sums = self._call(kernel, [data, packed], (tile.pieces * shape.groups, rows, columns), SUMS)
        key = ("add", *size, shape.dtype, steps, tile)
        add = self._kernel(site, key, lambda: gpu_sum_of_pieces(shape, tile, steps), "", "_sum")
        return self._call(add, [sums, *operands], size, shape.dtype)

    def _kernel(
        self, site: Site, key: Any, make: Callable[[], Any], algorithm: str, suffix: str = "", error: float | None = None
    ) -> Any:
        """The kernel of that key, made once however often it is called; `algorithm` marks the one that multiplies."""
        if key not in self.kernels:
            func = make()
            if algorithm:
                func = func.with_attrs({ALGORITHM: algorithm, FLOPS: 2 * site.shape.macs})
            self.kernels[key] = self.builder_.add_func(func, f"{site}{suffix}")
        kernel = self.kernels[key]
        if error is not None:
            self.errors[kernel] = max(error, self.errors.get(kernel, 0.0))
        return kernel

    def _call(self, kernel: Any, arguments: list[Any], size: tuple[int, ...], dtype: str) -> Any:
        return self.builder_.emit(relax.call_tir(kernel, arguments, relax.TensorType(size, dtype)))

    def _operands(self, site: Site, size: tuple[int, ...]) -> list[Any]:
        """What the epilogue reads: arrays as constants, tensors in the shape `size` of the kernel's output."""
        return [
            relax.const(operand, site.shape.dtype)
            if isinstance(operand, np.ndarray)
            else self._shaped(self.visit_expr(operand), size)
            for operand in site.operands
        ]

    def _shaped(self, value: Any, shape: tuple[int, ...]) -> Any:
        if [int(size) for size in value.ty.shape.values] == list(shape):
            return value
        return self.builder_.emit(relax.op.reshape(value, shape))


def _is_vector(site: Site) -> bool:
    """Whether a layer is a dense one over few rows, which dlight's matrix-vector rule does."""
    return len(site.data.ty.shape.values) < 4 and site.shape.pixels < FEW_ROWS
