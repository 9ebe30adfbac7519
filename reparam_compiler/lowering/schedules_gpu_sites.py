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

from reparam_compiler.lowering.algorithms import ConvShape
from reparam_compiler.lowering.kernels import Site, find_sites
from reparam_compiler.lowering.schedules_gpu_conv import gpu_conv, gpu_partial_conv, gpu_sum_of_pieces
from reparam_compiler.lowering.schedules_gpu_grouped import gpu_grouped_conv, is_narrow
from reparam_compiler.lowering.schedules_gpu_tensor import tensor_conv, tensor_partial_conv
from reparam_compiler.lowering.schedules_gpu_tiles import Chip, GpuTile, choose_gpu_tile

Weights = Shaped[np.ndarray, "..."]

DTYPES = ("float32", "float16")
FEW_ROWS = 16  # rows of a dense layer below which a matrix-vector kernel reads the weights as fast and wastes no tile


def convs_to_gpu_kernels(module: Any, target: Any) -> Any:
    """Replace each site of `main` by calls of its scheduled kernels."""
    sites = [site for site in find_sites(module["main"], DTYPES) if not _is_vector(site)]
    if not sites:
        return module
    rewriter = ConvsToGpuKernels(module, sites, Chip.of(str(target.attrs["arch"])))
    rewriter.builder_.update_func(module.get_global_var("main"), rewriter.visit_expr(module["main"]))
    return relax.transform.DeadCodeElimination()(rewriter.builder_.get())


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


def named_algorithm(shape: ConvShape, tile: GpuTile | None) -> str:
    """What a report calls the kernel of a conv."""
    if tile is None:
        return "direct"
    gemm = "implicit GEMM on tensor cores" if shape.dtype == "float16" else "implicit GEMM"
    return gemm if tile.pieces == 1 else f"{gemm} in {tile.pieces} pieces"


@mutator
class ConvsToGpuKernels(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Emits the kernel calls of a site, and drops the bindings that the site absorbed."""

    def __init__(self, module: Any, sites: list[Site], chip: Chip) -> None:
        super().__init__(module)
        self.chip = chip
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
        shape, steps = site.shape, site.epilogue
        result = relax.TensorType((shape.pixels, shape.groups, shape.group_out), shape.dtype)
        data = self._shaped(self.visit_expr(site.data), (shape.batch, shape.height, shape.width, shape.channels_in))
        operands = [self._operand(operand, site) for operand in site.operands]
        if is_narrow(shape):
            kernel = self._kernel(site, None, (shape, steps), lambda: gpu_grouped_conv(shape, steps))
            weights = relax.const(pack_grouped(site.weight), shape.dtype)
            return self.builder_.emit(relax.call_tir(kernel, [data, weights, *operands], result))
        half = shape.dtype == "float16"
        tile = choose_gpu_tile(shape, self.chip, tensor_cores=half)
        weights = relax.const(pack_gemm(site.weight, shape, tile), shape.dtype)
        if tile.pieces == 1:
            whole = tensor_conv if half else gpu_conv
            kernel = self._kernel(site, tile, (shape, steps, tile), lambda: whole(shape, tile, steps))
            return self.builder_.emit(relax.call_tir(kernel, [data, weights, *operands], result))
        part = tensor_partial_conv if half else gpu_partial_conv
        kernel = self._kernel(site, tile, (shape, tile), lambda: part(shape, tile))
        rows, columns, _ = tile.padded(shape)
        scratch = relax.TensorType((tile.pieces * shape.groups, rows, columns), "float32")
        sums = self.builder_.emit(relax.call_tir(kernel, [data, weights], scratch))
        key = ("sum", shape.pixels, shape.groups, shape.group_out, shape.dtype, steps, tile)
        add = self._kernel(site, None, key, lambda: gpu_sum_of_pieces(shape, tile, steps), suffix="_sum")
        return self.builder_.emit(relax.call_tir(add, [sums, *operands], result))

    def _kernel(self, site: Site, tile: GpuTile | None, key: Any, make: Callable[[], Any], suffix: str = "") -> Any:
        """The kernel of that key, made once however often it is called."""
        if key not in self.kernels:
            func = make()
            if not suffix:
                algorithm = named_algorithm(site.shape, tile)
                func = func.with_attrs({"reparam.algorithm": algorithm, "reparam.flops": 2 * site.shape.macs})
            self.kernels[key] = self.builder_.add_func(func, f"{site}{suffix}")
        return self.kernels[key]

    def _operand(self, operand: Any, site: Site) -> Any:
        shape = site.shape
        if isinstance(operand, np.ndarray):
            return relax.const(operand, shape.dtype)
        return self._shaped(self.visit_expr(operand), (shape.pixels, shape.groups, shape.group_out))

    def _shaped(self, value: Any, shape: tuple[int, ...]) -> Any:
        if [int(size) for size in value.ty.shape.values] == list(shape):
            return value
        return self.builder_.emit(relax.op.reshape(value, shape))


def _is_vector(site: Site) -> bool:
    """Whether a layer is a dense one over few rows, which dlight's matrix-vector rule does."""
    return len(site.data.ty.shape.values) < 4 and site.shape.pixels < FEW_ROWS
