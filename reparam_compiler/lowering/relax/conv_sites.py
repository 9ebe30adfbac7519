"""The layers of a Relax function that a kernel of ours can compute, with what follows them, and the pass that replaces them.

    conv2d(x, W) -> add(b) -> add(residual) -> relu        is one ConvSite

`find_conv_sites` reads the graph and changes nothing. `ConvSiteRewriter` emits what a target's pass makes of each site and
drops the bindings that the site absorbed: `cpu/kernels.py` for a CPU, `gpu/kernels.py` for a GPU.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Shaped
from tvm import relax

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.conv.pointwise import READ
from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.epilogues import Pointwise, constant_of, sizes_of
from reparam_compiler.lowering.relax.quantized import byte_data
from reparam_compiler.lowering.relax.replacing import SiteReplacer

Weights = Shaped[np.ndarray, "..."]

ALGORITHM, FLOPS, ERROR, LAYER = "reparam.algorithm", "reparam.flops", "reparam.error", "reparam.layer"
"""Attributes of kernels: what they compute by, twice the multiply-adds of the direct form, the largest measured error, and the
mark of their layer."""

DTYPES = ("float32", "float64")
INTEGERS = "int32"
"""Of the sums of a layer of bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class ConvSite:
    """A conv or dense layer of constant weight, with the elementwise ops that its kernel absorbs.

    data: its input; of a layer of integers the bytes, whose zero point is `zero`, a scalar of any dtype, or None: 0.
    weight: `O kh kw Ig`.
    operands: what the epilogue's binary steps read, in order: arrays `O`, or Relax tensors of the result's shape.
    absorbed: the variables between the layer and `result`, which disappear.
    result: the variable that the kernel's output stands for.
    """

    shape: ConvShape
    data: Any
    weight: Weights
    epilogue: tuple[Step, ...]
    operands: tuple[Any, ...]
    absorbed: tuple[Any, ...]
    result: Any
    zero: Any = None

    @property
    def dtype(self) -> str:
        """Of the result."""
        return str(self.result.ty.dtype)

    def __str__(self) -> str:
        s = self.shape
        kind = "depthwise" if s.depthwise else "conv" if s.height * s.width > 1 else "dense"
        groups = f"_g{s.groups}" if s.groups > 1 and not s.depthwise else ""
        size = f"{s.kernel[0]}x{s.kernel[1]}_{s.channels_in}_{s.channels_out}{groups}_at_{s.out_height}x{s.out_width}"
        return f"{kind}_{size}" if kind != "dense" else f"dense_{s.channels_in}_{s.channels_out}"


def find_conv_sites(main: Any, dtypes: Sequence[str] = DTYPES, *, casts: bool = False) -> list[ConvSite]:
    """Every conv2d (NHWC, OHWI) and matmul of `main` whose weight is a constant of a dtype that the recipe takes.

    Those of `INTEGERS` are of bytes less their zero points (`relax/quantized.py`); any other is not taken.
    casts: whether an epilogue may give another dtype.
    """
    graph = Pointwise.of(main)
    values = {binding.var: binding.value for binding in graph.bindings}
    taken: set[Any] = set()
    sites = []
    for binding in graph.bindings:
        start = _conv_site(binding) if op_name(binding.value) == "relax.nn.conv2d" else _dense_site(binding)
        if start is None or start.shape.dtype not in dtypes:
            continue
        if start.shape.dtype == INTEGERS:
            if (read := byte_data(start.data, values)) is None:
                continue
            start = replace(start, data=read[0], zero=read[1])
        behind = graph.epilogue(start.result, start.shape.channels_out, taken, casts=casts)
        site = (
            start
            if behind is None
            else replace(start, epilogue=behind.steps, operands=behind.operands, absorbed=behind.absorbed, result=behind.result)
        )
        taken.update([*site.absorbed, site.result])
        graph.reads(site.operands)
        sites.append(site)
    return sites


class ConvSiteRewriter(SiteReplacer):
    """Emits the kernel calls of each site, made by `calls`, and drops the bindings that the sites absorbed.

    kernels: those made so far, by what they depend on. errors: the largest measured one of each kernel.
    """

    def __init__(self, module: Any, sites: Sequence[ConvSite]) -> None:
        absorbed = {variable for site in sites for variable in site.absorbed}
        super().__init__(module, {site.result: site for site in sites}, absorbed)
        self.kernels: dict[Hashable, Any] = {}
        self.errors: dict[Any, float] = {}

    def calls(self, site: ConvSite) -> Any:
        """The calls that compute a site; the value of the last, in any shape of as many elements."""
        raise NotImplementedError

    def value(self, site: ConvSite) -> Any:
        """The value of its calls, in the shape of the result."""
        return relax.op.reshape(self.calls(site), site.result.ty.shape)

    def kernel(
        self,
        site: ConvSite,
        key: Hashable,
        make: Callable[[], Any],
        algorithm: str = "",
        *,
        suffix: str = "",
        error: float | None = None,
    ) -> Any:
        """The kernel of that key, made once however often it is called; `algorithm` marks the one that multiplies."""
        if key not in self.kernels:
            func = make().with_attr(LAYER, site.shape.mark)
            if algorithm:
                func = func.with_attrs({ALGORITHM: algorithm, FLOPS: 2 * site.shape.macs})
            self.kernels[key] = self.builder_.add_func(func, f"{site}{suffix}")
        kernel = self.kernels[key]
        if error is not None:
            self.errors[kernel] = max(error, self.errors.get(kernel, 0.0))
        return kernel

    def call(self, kernel: Any, arguments: Sequence[Any], size: tuple[int, ...], dtype: str) -> Any:
        """A call of a kernel, emitted."""
        return self.builder_.emit(relax.call_tir(kernel, list(arguments), relax.TensorType(size, dtype)))

    def data(self, site: ConvSite) -> Any:
        """The site's input, `N H W C`."""
        shape, data = site.shape, self.visit_expr(site.data)
        data = self.builder_.emit(data) if isinstance(data, relax.Call) else data
        return self.shaped(data, (shape.batch, shape.height, shape.width, shape.channels_in))

    def operands(self, site: ConvSite, size: tuple[int, ...]) -> list[Any]:
        """What the epilogue reads: arrays as constants, tensors in the `size` of the kernel's output, or of its pixels."""
        kinds = [step.operand for step in site.epilogue if step.operand in READ]
        return [
            relax.const(operand, str(operand.dtype))
            if isinstance(operand, np.ndarray)
            else self.shaped(self.visit_expr(operand), size[:-2] if kind == "pixels" else size)
            for kind, operand in zip(kinds, site.operands, strict=True)
        ]

    def shaped(self, value: Any, shape: tuple[int, ...]) -> Any:
        """The value in that shape."""
        return value if sizes_of(value) == shape else self.builder_.emit(relax.op.reshape(value, shape))


def rewritten(module: Any, rewriter: Any) -> Any:
    """The module with `main` as a ConvSiteRewriter leaves it; each kernel has its error noted on it."""
    rewriter.builder_.update_func(module.get_global_var("main"), rewriter.visit_expr(module["main"]))
    module = relax.transform.DeadCodeElimination()(rewriter.builder_.get())
    for variable, error in rewriter.errors.items():
        module.update_func(variable, module[variable].with_attr(ERROR, error))
    return module


def _conv_site(binding: Any) -> ConvSite | None:
    call = binding.value
    attrs, weight, data = call.attrs, constant_of(call.args[1]), sizes_of(call.args[0])
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    out = sizes_of(binding.var)
    if weight is None or data is None or out is None or layouts != ("NHWC", "OHWI", "NHWC"):
        return None
    if str(binding.var.ty.dtype) != str(weight.dtype) or 0 in (*data, *out):
        return None
    batch, height, width, channels = data
    shape = ConvShape(
        batch,
        height,
        width,
        channels,
        out[3],
        kernel=(weight.shape[1], weight.shape[2]),
        stride=(int(attrs.strides[0]), int(attrs.strides[1])),
        dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
        padding=(int(attrs.padding[0]), int(attrs.padding[1]), int(attrs.padding[2]), int(attrs.padding[3])),
        groups=int(attrs.groups),
        dtype=str(weight.dtype),
    )
    return ConvSite(shape, call.args[0], weight, (), (), (), binding.var)


def _dense_site(binding: Any) -> ConvSite | None:
    call = binding.value
    if op_name(call) != "relax.matmul":
        return None
    weight, data, out = constant_of(call.args[1]), sizes_of(call.args[0]), sizes_of(binding.var)
    if weight is None or weight.ndim != 2 or data is None or len(data) < 2 or out is None or 0 in (*data, *out):
        return None
    if str(binding.var.ty.dtype) != str(weight.dtype):
        return None
    rows = int(np.prod(data[:-1]))
    shape = ConvShape(rows, 1, 1, weight.shape[0], weight.shape[1], (1, 1), dtype=str(weight.dtype))
    by_output = weight.T.reshape(shape.channels_out, 1, 1, shape.channels_in)
    return ConvSite(shape, call.args[0], by_output, (), (), (), binding.var)
