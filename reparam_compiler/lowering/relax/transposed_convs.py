"""Transposed convs as convs, after the layout is NHWC; Relax in, Relax out.

In each direction the outputs of a transposed conv of stride s fall into s phases, and each is a plain conv:

    y[s u + r] = sum_j x[u - j] w[r + s j]             j < ceil(k / s) taps, before the padding is cut off

One conv computes all s s phases as channels, `N U V (G s s O/G)`, with zero taps where a phase has fewer; a pixel shuffle puts
them side by side, `N (U s) (V s) (G O/G)`, and a slice cuts the borders. Pointwise ops that follow are computed before the
shuffle, where they are in the epilogue of the conv.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import mutator

from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.epilogues import Pointwise, constant_of, sizes_of
from reparam_compiler.lowering.relax.replacing import SiteReplacer

TRANSPOSED = "relax.nn.conv2d_transpose"


def with_plain_convs(module: Any) -> Any:
    """Every transposed conv (NHWC, `O/G kh kw I`) of constant weight as a conv; the others as TVM's kernel takes them, NCHW."""
    graph = Pointwise.of(module["main"])
    transposed = [binding for binding in graph.bindings if op_name(binding.value) == TRANSPOSED]
    if not transposed:
        return module
    module = module.clone()
    sites, bound = [_site(binding, graph) for binding in transposed], {each.var: each.value for each in graph.bindings}
    module["main"] = _Rewriter(module, sites, bound).visit_expr(module["main"])
    return relax.transform.DeadCodeElimination()(module)


@dataclass(frozen=True, slots=True)
class Direction:
    """A transposed conv in one direction: sizes of input, output and kernel, and its attributes."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    cut: int

    @property
    def taps(self) -> int:
        """Of the conv that computes the phases."""
        return -(-self.kernel // self.stride)

    @property
    def padding(self) -> tuple[int, int]:
        """Of that conv, before and after."""
        first, last = self.cut // self.stride, (self.cut + self.out - 1) // self.stride
        return (self.taps - 1) * self.dilation - first, last + 1 - self.size

    @property
    def skipped(self) -> int:
        """Pixels of the shuffled output before the first of the result."""
        return self.cut % self.stride

    @property
    def is_conv(self) -> bool:
        """Whether a conv computes it: not where more is cut than the kernel reaches, nor dilated phases."""
        return min(self.padding) >= 0 and (self.dilation == 1 or self.stride == 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    """A transposed conv: its binding, what follows in its epilogue, its two directions where a conv can compute it."""

    binding: Any
    behind: tuple[Any, ...]
    directions: tuple[Direction, Direction] | None

    @property
    def result(self) -> Any:
        return self.behind[-1] if self.behind else self.binding.var

    @property
    def groups(self) -> int:
        return int(self.binding.value.attrs.groups)

    def weight(self) -> Any:
        """`(G s s O/G) taps taps I/G` of `O/G kh kw I`."""
        weight = constant_of(self.binding.value.args[1])
        assert self.directions is not None
        down, across = self.directions
        (out, kh, kw, inputs), (sh, sw) = weight.shape, (down.stride, across.stride)
        missing = [(0, 0), (0, down.taps * sh - kh), (0, across.taps * sw - kw), (0, 0)]
        split = np.pad(weight, missing).reshape(out, down.taps, sh, across.taps, sw, self.groups, inputs // self.groups)
        phases = split[:, ::-1, :, ::-1].transpose(5, 2, 4, 0, 1, 3, 6)
        return np.ascontiguousarray(phases.reshape(-1, down.taps, across.taps, inputs // self.groups))

    def by_phase(self, channels: Any) -> Any:
        """What has an element a channel on its last axis, repeated for the phases."""
        assert self.directions is not None
        copies = self.directions[0].stride * self.directions[1].stride
        split = channels.reshape(*channels.shape[:-1], self.groups, 1, channels.shape[-1] // self.groups)
        return np.repeat(split, copies, axis=-2).reshape(*channels.shape[:-1], -1)


def _site(binding: Any, graph: Pointwise) -> _Site:
    call, data, out = binding.value, sizes_of(binding.value.args[0]), sizes_of(binding.var)
    weight, attrs = constant_of(call.args[1]), call.attrs
    if weight is None or data is None or out is None or 0 in (*data, *out):
        return _Site(binding, (), None)
    down, across = (
        Direction(
            *(data[axis + 1], out[axis + 1], weight.shape[axis + 1]),
            *(int(attrs.strides[axis]), int(attrs.dilation[axis]), int(attrs.padding[axis])),
        )
        for axis in (0, 1)
    )
    if not (down.is_conv and across.is_conv):
        return _Site(binding, (), None)
    epilogue = graph.epilogue(binding.var, out[3], tensors=False)
    behind = () if epilogue is None else (*epilogue.absorbed[1:], epilogue.result)
    return _Site(binding, behind, (down, across))


@mutator
class _Rewriter(SiteReplacer):
    """bound: what each variable of the function stands for."""

    def __init__(self, module: Any, sites: Sequence[_Site], bound: Mapping[Any, Any]) -> None:
        absorbed = {var for site in sites for var in (site.binding.var, *site.behind) if not var.same_as(site.result)}
        super().__init__(module, {site.result: site for site in sites}, absorbed)
        self.bound = bound

    def value(self, site: _Site) -> Any:
        """A conv and a shuffle, or TVM's own kernel."""
        return self._in_nchw(site) if site.directions is None else self._as_conv(site, *site.directions)

    def _as_conv(self, site: _Site, down: Direction, across: Direction) -> Any:
        (top, bottom), (left, right) = down.padding, across.padding
        weight = site.weight()
        value = self.builder_.emit(
            relax.op.nn.conv2d(
                self.visit_expr(site.binding.value.args[0]),
                relax.const(weight, str(weight.dtype)),
                padding=(top, left, bottom, right),
                dilation=(down.dilation, across.dilation),
                groups=site.groups,
                data_layout="NHWC",
                kernel_layout="OHWI",
            )
        )
        values = {site.binding.var: value}
        for variable in site.behind:
            call = self.bound[variable]
            values[variable] = self.builder_.emit(
                relax.Call(call.op, [self._argument(argument, values, site) for argument in call.args], call.attrs)
            )
        return self._shuffled(values[site.result], site, down, across)

    def _argument(self, argument: Any, values: dict[Any, Any], site: _Site) -> Any:
        array = constant_of(argument)
        if array is None:
            return values[argument]
        return argument if array.size == 1 else relax.const(site.by_phase(array), str(array.dtype))

    def _shuffled(self, value: Any, site: _Site, down: Direction, across: Direction) -> Any:
        """`N U V (G s s O/G)` -> `N H W O`."""
        batch, height, width, channels = site.result.ty.shape.values
        rows, columns = sizes_of(value)[1:3]  # type: ignore[index]
        strides = down.stride, across.stride
        if strides != (1, 1):
            split = relax.op.reshape(value, (batch, rows, columns, site.groups, *strides, int(channels) // site.groups))
            turned = self.builder_.emit(relax.op.permute_dims(self.builder_.emit(split), [0, 1, 4, 2, 5, 3, 6]))
            value = self.builder_.emit(relax.op.reshape(turned, (batch, rows * strides[0], columns * strides[1], channels)))
        begin, end = [down.skipped, across.skipped], [down.skipped + int(height), across.skipped + int(width)]
        whole = begin == [0, 0] and end == [rows * strides[0], columns * strides[1]]
        return value if whole else relax.op.strided_slice(value, axes=[1, 2], begin=begin, end=end)

    def _in_nchw(self, site: _Site) -> Any:
        """As TVM has a kernel for it."""
        call = site.binding.value
        data, weight = map(self.visit_expr, call.args)
        attrs = call.attrs
        by_channel = self.builder_.emit(relax.op.permute_dims(data, [0, 3, 1, 2]))
        kernel = self.builder_.emit(relax.op.permute_dims(weight, [3, 0, 1, 2]))
        options = {
            name: [int(n) for n in getattr(attrs, name)] for name in ("strides", "padding", "output_padding", "dilation")
        }
        result = relax.op.nn.conv2d_transpose(by_channel, kernel, groups=site.groups, **options)
        return relax.op.permute_dims(self.builder_.emit(result), [0, 2, 3, 1])
