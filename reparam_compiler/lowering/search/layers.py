"""The layers of a net that a search measures: each distinct one once, as a module of its own.

    main: x -> conv -> add -> relu -> pool -> …        gives the layer        main(x) = relu(add(conv(x)))

A layer's module is cut out of the net, with the layer's own weights and epilogue, so that its kernels, the packing of its
weights and whatever lies between them are what the net would have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.conv.accuracy import measured_error
from reparam_compiler.lowering.conv.algorithms import ConvShape, Point
from reparam_compiler.lowering.relax.conv_sites import ConvSite


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Convs or dense layers of one shape. site: the first of them. count: how many a run computes."""

    site: ConvSite
    count: int

    @property
    def shape(self) -> ConvShape:
        return self.site.shape

    def __str__(self) -> str:
        return str(self.site)

    def bears(self, point: Point, max_error: float) -> bool:
        """Whether a point is exact enough on the weights: one that is not would be refused when the net is compiled."""
        return measured_error(self.site.weight, self.shape, point.arithmetic) <= max_error


def layers_of(sites: Sequence[ConvSite]) -> list[Layer]:
    """The distinct layers, those of the most multiply-adds first."""
    by_shape: dict[ConvShape, list[ConvSite]] = {}
    for site in sites:
        by_shape.setdefault(site.shape, []).append(site)
    layers = [Layer(alike[0], len(alike)) for alike in by_shape.values()]
    return sorted(layers, key=lambda layer: -layer.count * layer.shape.macs)


def module_of(layer: Layer, main: Any) -> Any:
    """The layer as a module. main: of the net that it is a layer of."""
    inside = {*layer.site.absorbed, layer.site.result}
    return cut([binding for block in main.body.blocks for binding in block.bindings if binding.var in inside])


def cut(bindings: Sequence[Any]) -> Any:
    """A module whose `main` is these bindings of another: it takes what they read, and gives the last one's value."""
    inside = {binding.var for binding in bindings}
    outside = dict.fromkeys(variable for binding in bindings for variable in _read(binding.value) if variable not in inside)
    cutter = _Cutter({variable: relax.Var(f"x{number}", variable.ty) for number, variable in enumerate(outside)})
    builder = relax.BlockBuilder()
    with builder.function("main", list(cutter.renamed.values())):
        with builder.dataflow():
            for binding in bindings[:-1]:
                cutter.renamed[binding.var] = builder.emit(cutter.visit_expr(binding.value))
            result = builder.emit_output(cutter.visit_expr(bindings[-1].value))
        builder.emit_func_output(result)
    return builder.get()


def _read(value: Any) -> Iterator[Any]:
    """The variables that an expression reads, in order."""
    yield from relax.analysis.free_vars(value)


@mutator
class _Cutter(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Puts other variables in the place of those that it was given."""

    def __init__(self, renamed: dict[Any, Any]) -> None:
        super().__init__()
        self.renamed = renamed

    def visit_var_(self, op: Any) -> Any:
        return self.renamed.get(op, op)

    def visit_dataflow_var_(self, op: Any) -> Any:
        return self.renamed.get(op, op)
