"""An ONNX model at the sizes of its example inputs: what its values are there, and what else is so at other sizes.

    bound = Bound.of(model, {"x": (4, 3, 320, 320)}, shapes.type)
    bound.type("y", known)          the sizes that the file leaves open as numbers; that of the batch keeps its name
    bound.coupling_model(node)      what pruning sees in it, with numbers only for what is the same at other sizes

The model is gone through three times, without its data: with a batch of one, with a batch of two, and with other sizes along
all axes that are open. A size that is one and two in the first two runs is the batch's, wherever it stands; what the third run
has otherwise follows from the sizes of the inputs, and no number may be written for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from onnx import ModelProto, NodeProto

from reparam_compiler.core.kernel import Ints
from reparam_compiler.core.names import free_name
from reparam_compiler.frontends.onnx.call import Call, Unsupported
from reparam_compiler.frontends.onnx.ops.registry import Coupled
from reparam_compiler.frontends.onnx.ops.table import coupling_model
from reparam_compiler.frontends.onnx.shapes import evaluator
from reparam_compiler.frontends.onnx.shapes.evaluator import Shapes
from reparam_compiler.frontends.onnx.tensors import constant_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, Param, TensorType

TypeOf = Callable[[str], TensorType | None]
Sizes = Mapping[str, Ints]


@dataclass(frozen=True, slots=True)
class Bound:
    """A model with sizes for its inputs.

    batch: the name of the open first axis; empty where every input states how many samples it takes.
    runs: what is known of the model's values at the example's sizes, with another batch, and at other sizes.
    """

    batch: str
    runs: tuple[Shapes, Shapes, Shapes]

    @staticmethod
    def of(model: ModelProto, examples: Sizes, type_of: TypeOf) -> "Bound | None":
        """At these shapes of inputs, whose types in the file are known; None where those leave no size open."""
        own = {name: known.shape for name in examples if (known := type_of(name)) is not None}
        if all(isinstance(size, int) for shape in own.values() for size in shape):
            return None
        first = [shape[0] for shape in own.values() if shape and not isinstance(shape[0], int)]
        named = {size for shape in own.values() for size in shape if isinstance(size, str)}
        batch = next((size for size in first if isinstance(size, str)), free_name("N", named)) if first else ""
        samples = {size for size in first if size is not None}
        shapes = {name: examples[name] for name, shape in own.items() if len(shape) == len(examples[name])}
        sizes = _Sizes({name: own[name] for name in shapes}, shapes, samples)
        return Bound(batch, (at_sizes(model, sizes.of(1, 1)), at_sizes(model, sizes.of(2, 1)), at_sizes(model, sizes.of(3, 2))))

    def type(self, name: str, known: TensorType | None) -> TensorType | None:
        """The type of a value of which this is known for every run."""
        found = [run.type(name) for run in self.runs[:2]]
        if found[0] is None:
            return known
        own = known.shape if known is not None and len(known.shape) == len(found[0].shape) else (None,) * len(found[0].shape)
        other = found[1].shape if found[1] is not None and len(found[1].shape) == len(own) else own
        sizes = zip(own, found[0].shape, other, strict=True)
        return TensorType(found[0].dtype, tuple(self._size(axis, *three) for axis, three in enumerate(sizes)))

    def _size(self, axis: int, own: Dim, one: Dim, two: Dim) -> Dim:
        """A size: as the file has it, with a batch of one, and with a batch of two."""
        if isinstance(own, int) or not isinstance(one, int):
            return own
        if (one, two) == (1, 2):
            return self.batch
        return own if axis == 0 and one != two else one  # several for each sample: they are counted as one is

    def coupling_model(self, node: NodeProto) -> Coupled:
        """What pruning sees in an opaque node; raises Unsupported where open sizes have a part in it that no op can state."""
        found = [coupling_model(Call(node, run, _no_param), run.type(node.output[0])) for run in self.runs]
        (first, reads), *others = found
        if all(op == first for op, _ in others):
            return first, reads
        known = [run.type(node.input[0]) for run in self.runs]
        own = [shape.shape for shape in known if shape is not None]
        stated = [op.shape for op, _ in found if isinstance(op, ops.Reshape | ops.Expand)]
        if len({type(op) for op, _ in found}) > 1 or len({len(shape) for shape in stated}) != 1 or len(own) < len(stated):
            raise Unsupported(f"{node.op_type} whose meaning depends on open sizes")
        if isinstance(first, ops.Reshape):
            return ops.Reshape(_kept(stated, own, kept=0, left=-1)), reads
        own = [(1,) * (len(shape) - len(sizes)) + sizes for sizes, shape in zip(own, stated, strict=True)]
        return ops.Expand(_kept(stated, own, kept=-1, left=None)), reads


def _kept(stated: Sequence[Ints], own: Sequence[tuple[Dim, ...]], *, kept: int, left: int | None) -> Ints:
    """Sizes that are the same in all runs; `kept` for those that x has at this place, `left` for one that is neither."""
    sizes: list[int] = []
    for axis, found in enumerate(zip(*stated, strict=True)):
        if len(set(found)) == 1:
            sizes.append(found[0])
        elif all(shape[axis : axis + 1] == (size,) for shape, size in zip(own, found, strict=True)):
            sizes.append(kept)
        elif left is not None:
            sizes.append(left)
        else:
            raise Unsupported("an expansion to an open size")
    if left is not None and sizes.count(left) > 1:
        raise Unsupported("a reshape to several open sizes")
    return tuple(sizes)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """own: the shapes of the inputs in the file. given: those of the example. samples: the names of a batch."""

    own: Mapping[str, tuple[Dim, ...]]
    given: Sizes
    samples: set[str]

    def of(self, batch: int, factor: int) -> Sizes:
        """Shapes with this batch; other open sizes as given, or, where `factor` is not 1, times numbers from it on."""
        factors: dict[str, int] = {}
        free = count(factor, 0 if factor == 1 else 1)
        return {name: tuple(self._axes(name, batch, factors, free)) for name in self.given}

    def _axes(self, name: str, batch: int, factors: dict[str, int], free: Iterator[int]) -> Iterator[int]:
        for axis, (own, size) in enumerate(zip(self.own[name], self.given[name], strict=True)):
            if isinstance(own, int):
                yield own
            elif own in self.samples or axis == 0:
                yield batch
            else:
                yield size * factors.setdefault(own or f"{name} {axis}", next(free))


def at_sizes(model: ModelProto, sizes: Sizes) -> Shapes:
    """All that is known of a model whose inputs have these shapes."""
    shapes = evaluator.of(model, sizes)
    for tensor in model.graph.initializer:
        if tensor.name not in sizes:
            shapes.constants[tensor.name] = constant_of(tensor, tensor.name)
    for place, node in enumerate(model.graph.node):
        if not shapes.derive(node, place):
            shapes.refine(node)
            shapes.values.update(filter(None, node.output))
    return shapes


def _no_param(name: str, role: str, transposed: bool) -> Param:
    raise Unsupported(f"a model of {name} that needs its elements")
