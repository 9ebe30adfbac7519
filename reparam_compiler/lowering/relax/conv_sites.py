"""The layers of a Relax function that a kernel of ours can compute, with what follows them, and the pass that replaces them.

    conv2d(x, W) -> add(b) -> add(residual) -> relu        is one ConvSite

`find_conv_sites` reads the graph and changes nothing. `ConvSiteRewriter` emits what a target's pass makes of each site and
drops the bindings that the site absorbed: `cpu/kernels.py` for a CPU, `gpu/kernels.py` for a GPU.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Shaped
from tvm import relax, tirx
from tvm.ir import GenericConst
from tvm.relax.expr_functor import PyExprMutator

from reparam_compiler.lowering.conv.algorithms import ConvShape, Operand, Step
from reparam_compiler.lowering.conv.pointwise import FUSED, POINTWISE
from reparam_compiler.lowering.relax.canonicalize import op_name

Weights = Shaped[np.ndarray, "..."]

ALGORITHM, FLOPS, ERROR = "reparam.algorithm", "reparam.flops", "reparam.error"
"""Attributes of kernels: what they compute by, twice the multiply-adds of the direct form, the largest measured error."""

DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True, eq=False)
class ConvSite:
    """A conv or dense layer of constant weight, with the elementwise ops that its kernel absorbs.

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

    def __str__(self) -> str:
        s = self.shape
        kind = "depthwise" if s.depthwise else "conv" if s.height * s.width > 1 else "dense"
        groups = f"_g{s.groups}" if s.groups > 1 and not s.depthwise else ""
        size = f"{s.kernel[0]}x{s.kernel[1]}_{s.channels_in}_{s.channels_out}{groups}_at_{s.out_height}x{s.out_width}"
        return f"{kind}_{size}" if kind != "dense" else f"dense_{s.channels_in}_{s.channels_out}"


def find_conv_sites(main: Any, dtypes: Sequence[str] = DTYPES) -> list[ConvSite]:
    """Every conv2d (NHWC, OHWI) and matmul of `main` whose weight is a constant of a dtype that the recipe takes."""
    bindings = [b for block in main.body.blocks for b in block.bindings if isinstance(b, relax.VarBinding)]
    uses: Counter[Any] = Counter(_read_by(main.body.body))
    readers: dict[Any, Any] = {}
    for binding in bindings:
        for variable in _read_by(binding.value):
            uses[variable] += 1
            readers[variable] = binding
    taken: set[Any] = set()
    sites = []
    for binding in bindings:
        start = _conv_site(binding) if op_name(binding.value) == "relax.nn.conv2d" else _dense_site(binding)
        if start is None or start.shape.dtype not in dtypes:
            continue
        site = start
        while uses[site.result] == 1 and site.result in readers:
            following = _absorb(site, readers[site.result])
            if following is None or following.result in taken:
                break
            site = following
        taken.update([*site.absorbed, site.result])
        sites.append(site)
    return sites


class ConvSiteRewriter(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Emits the kernel calls of each site, made by `calls`, and drops the bindings that the sites absorbed.

    kernels: those made so far, by what they depend on. errors: the largest measured one of each kernel.
    """

    def __init__(self, module: Any, sites: Sequence[ConvSite]) -> None:
        super().__init__(module)
        self.by_result = {site.result: site for site in sites}
        self.absorbed = {variable for site in sites for variable in site.absorbed}
        self.kernels: dict[Hashable, Any] = {}
        self.errors: dict[Any, float] = {}

    def calls(self, site: ConvSite) -> Any:
        """The calls that compute a site; the value of the last, in any shape of as many elements."""
        raise NotImplementedError

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self.absorbed:
            return
        site = self.by_result.get(binding.var)
        if site is None:
            super().visit_var_binding_(binding)
            return
        result = relax.op.reshape(self.calls(site), site.result.ty.shape)
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(result))

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
            func = make()
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
        shape = site.shape
        return self.shaped(self.visit_expr(site.data), (shape.batch, shape.height, shape.width, shape.channels_in))

    def operands(self, site: ConvSite, size: tuple[int, ...]) -> list[Any]:
        """What the epilogue reads: arrays as constants, tensors in the shape `size` of the kernel's output."""
        return [
            relax.const(operand, site.shape.dtype)
            if isinstance(operand, np.ndarray)
            else self.shaped(self.visit_expr(operand), size)
            for operand in site.operands
        ]

    def shaped(self, value: Any, shape: tuple[int, ...]) -> Any:
        """The value in that shape."""
        return value if _sizes(value) == shape else self.builder_.emit(relax.op.reshape(value, shape))


def rewritten(module: Any, rewriter: Any) -> Any:
    """The module with `main` as a ConvSiteRewriter leaves it; each kernel has its error noted on it."""
    rewriter.builder_.update_func(module.get_global_var("main"), rewriter.visit_expr(module["main"]))
    module = relax.transform.DeadCodeElimination()(rewriter.builder_.get())
    for variable, error in rewriter.errors.items():
        module.update_func(variable, module[variable].with_attr(ERROR, error))
    return module


def _read_by(expr: Any) -> list[Any]:
    """Each variable that an expression reads, as often as it reads it."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Call):
        return list(itertools.chain.from_iterable(_read_by(arg) for arg in expr.args))
    if isinstance(expr, relax.Tuple):
        return list(itertools.chain.from_iterable(_read_by(field) for field in expr.fields))
    found: list[Any] = []
    relax.analysis.post_order_visit(expr, lambda e: found.append(e) if isinstance(e, relax.Var) else None)
    return found


def _sizes(expr: Any) -> tuple[int, ...] | None:
    """The fixed shape of a tensor; nothing where a size is symbolic."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None or not hasattr(ty.shape, "values"):
        return None
    sizes = list(ty.shape.values)
    return tuple(int(n) for n in sizes) if all(isinstance(n, tirx.IntImm) for n in sizes) else None


def _constant(expr: Any) -> Weights | None:
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def _conv_site(binding: Any) -> ConvSite | None:
    call = binding.value
    attrs, weight, data = call.attrs, _constant(call.args[1]), _sizes(call.args[0])
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    out = _sizes(binding.var)
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
    weight, data, out = _constant(call.args[1]), _sizes(call.args[0]), _sizes(binding.var)
    if weight is None or weight.ndim != 2 or data is None or len(data) < 2 or out is None or 0 in (*data, *out):
        return None
    if str(binding.var.ty.dtype) != str(weight.dtype):
        return None
    rows = int(np.prod(data[:-1]))
    shape = ConvShape(rows, 1, 1, weight.shape[0], weight.shape[1], (1, 1), dtype=str(weight.dtype))
    by_output = weight.T.reshape(shape.channels_out, 1, 1, shape.channels_in)
    return ConvSite(shape, call.args[0], by_output, (), (), (), binding.var)


def _absorb(site: ConvSite, reader: Any) -> ConvSite | None:
    """The site with the op of `reader` in its epilogue; nothing where that op is not one for an epilogue."""
    word = FUSED.get(op_name(reader.value))
    if word is None or _sizes(reader.var) != _sizes(site.result) or reader.var.ty.dtype != site.result.ty.dtype:
        return None
    if POINTWISE[word].function is not None and any(POINTWISE[step.op].function is not None for step in site.epilogue):
        return None  # nested functions compile in time that grows exponentially
    step, operands = _step(word, reader.value, site)
    if step is None:
        return None
    return replace(
        site,
        epilogue=(*site.epilogue, step),
        operands=(*site.operands, *operands),
        absorbed=(*site.absorbed, site.result),
        result=reader.var,
    )


def _step(word: str, call: Any, site: ConvSite) -> tuple[Step | None, tuple[Any, ...]]:
    """The step that an op behind a site is, and the operands that it reads; none where the kernel cannot read them."""
    takes = POINTWISE[word].takes
    if takes == "nothing":
        return Step(word), ()
    if takes == "slopes":
        slopes, last = _constant(call.args[1]), len(site.result.ty.shape) - 1
        if slopes is None or slopes.size != site.shape.channels_out or int(call.attrs.axis) not in (-1, last):
            return None, ()
        return Step(word, "channels"), (np.ascontiguousarray(slopes.reshape(-1)),)
    swapped = bool(call.args[1].same_as(site.result))
    kind, operand = _operand(call.args[0] if swapped else call.args[1], site)
    if kind == "scalar":
        return Step(word, kind, swapped, float(operand)), ()
    return (None, ()) if kind == "none" else (Step(word, kind, swapped), (operand,))


def _operand(other: Any, site: ConvSite) -> tuple[Operand, Any]:
    """What the other side of a binary op is to the kernel, and its value."""
    if other.ty.dtype != site.result.ty.dtype:
        return "none", None
    value = _constant(other)
    if value is not None and value.size == 1:
        return "scalar", value.item()
    if value is not None and value.ndim and value.shape[-1] == value.size == site.shape.channels_out:
        return "channels", np.ascontiguousarray(value.reshape(-1))
    return ("tensor", other) if _sizes(other) == _sizes(site.result) else ("none", None)
