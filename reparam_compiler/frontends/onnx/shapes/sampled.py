"""Values of an ONNX graph that depend on constants and sizes alone: kernels, and what exporters compute as shapes and indices.

They are evaluated when they are asked for, each node once, and floats in float64 whatever dtype the model has: what a pass
folds is rounded once, when it is written. Only a Cast rounds before, on purpose, and what rounds to steps or compares.

A size that the model leaves open (a dim_param) is tried as several numbers: what comes out the same for all of them is
constant (the number of channels that was taken from a shape), and a pattern found in all of them is that of every size.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.node_runner import FAILURES, run_arrays
from reparam_compiler.frontends.onnx.shapes.sizes import SMALL
from reparam_compiler.frontends.onnx.tensors import MADE, Constant, byte_count, called, element_type
from reparam_compiler.ir.graph import Dim, TensorType
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING
from reparam_compiler.vocabulary.resolve import onnx_facts

SAMPLES = ((7, 2), (10, 3), (16, 5))
"""Open sizes, in order, are tried as first + k * step: no two are equal in any try."""
FAR_SAMPLES = ((1, 0), (1009, 16), (50021, 48))
"""The same for values that something bounds or compares: what holds for middling sizes need not hold for these."""


@dataclass
class SampledShapes:
    """The nodes that give such values.

    stored: the constant of a name that some tensor of the model holds, or None.
    dtype_of, type_of: what is known of a value.
    """

    model: ModelProto
    stored: Callable[[str], Constant | None]
    dtype_of: Callable[[str], str | None]
    type_of: Callable[[str], TensorType | None]
    _nodes: dict[str, tuple[int, NodeProto]] = field(default_factory=dict)
    _sized: set[str] = field(default_factory=set)
    _open: set[str] = field(default_factory=set)
    _symbols: dict[str, int] = field(default_factory=dict)
    _sampled: dict[str, list[np.ndarray] | None] = field(default_factory=dict)
    _held: dict[tuple[str, bool], np.ndarray] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def is_sized(self, name: str) -> bool:
        """True where the sizes of computed values matter."""
        return name in self._sized

    def is_open(self, name: str) -> bool:
        """True where sizes matter that the model leaves open."""
        return name in self._open

    def follow(self, node: NodeProto, place: int) -> bool:
        """Notes a node all of whose inputs are constant or derived, or that asks for the size of a value; False for others."""
        given = [name for name in node.input if name]
        asks = Facts.SIZE_QUERY in onnx_facts(node.op_type) and not self._is_known(given[0])
        if asks:
            known = self.type_of(given[0])
            if known is None or any(size is None for size in known.shape):
                return False
            for size in known.shape:
                if isinstance(size, str):
                    self._symbols.setdefault(size, len(self._symbols))
        elif not given or not all(map(self._is_known, given)):
            return False
        sized = asks or any(name in self._sized for name in given)
        opened = any(name in self._open for name in given) or (asks and not _is_static(self.type_of(given[0])))
        for name in filter(None, node.output):
            self._nodes[name] = (place, node)
            if sized:
                self._sized.add(name)
            if opened:
                self._open.add(name)
        return True

    def forget(self, node: NodeProto) -> None:
        """Takes a node back that cannot be evaluated."""
        for name in node.output:
            self._nodes.pop(name, None)
            self._sized.discard(name)
            self._open.discard(name)

    def node(self, name: str) -> tuple[int, NodeProto]:
        """The node that gives a value, and its place in the model."""
        return self._nodes[name]

    def _is_known(self, name: str) -> bool:
        return name in self._nodes or self.stored(name) is not None

    def chain(self, name: str) -> list[NodeProto]:
        """The nodes that compute a value, in the model's order."""
        found: dict[int, NodeProto] = {}
        wanted = [name]
        while wanted:
            place, node = self._nodes.get(wanted.pop(), (None, None))
            if place is not None and node is not None and place not in found:
                found[place] = node
                wanted += [n for n in node.input if n]
        return [found[place] for place in sorted(found)]

    def evaluate(self, name: str, sizes: Mapping[str, int] | None = None) -> np.ndarray:
        """The elements, floats in float64; raises UnsupportedModelError where a node cannot be evaluated."""
        values: dict[str, np.ndarray] = {}
        chain = self.chain(name)
        # what is part of a discontinuous value is computed in the model's own dtypes
        jumps = any(Facts.DISCONTINUOUS in onnx_facts(node.op_type) and self._is_floating(node.input[0]) for node in chain)
        for node in chain:
            names = [output for output in node.output if output]
            held = {output: self._held[output, jumps] for output in names if (output, jumps) in self._held}
            if len(held) == len(names):
                values.update(held)
                continue
            self._check_size(node)
            try:
                outputs = self._run(node, values, sizes or {}, own=jumps)
            except FAILURES as error:
                raise UnsupportedModelError(
                    f"{node.name or node.op_type} ({node.op_type}) depends on constants alone, but cannot be evaluated: "
                    f"{error}; fold it before, with onnxruntime"
                ) from error
            found = dict(zip(names, map(_wide, outputs), strict=False))
            values.update(found)
            self._held.update({(output, jumps): value for output, value in found.items() if self._is_held(output, value)})
        return values[name]

    def _check_size(self, node: NodeProto) -> None:
        """Raises UnsupportedModelError for a node that is known to make more than memory holds."""
        for name in filter(None, node.output):
            known = self.type_of(name)
            if known is None:
                continue
            dims = [size for size in known.shape if isinstance(size, int)]
            count = byte_count(TensorProto(data_type=element_type(known.dtype), dims=dims))
            if count > MADE:
                raise UnsupportedModelError(f"{called(node)} makes {count} bytes of {name}; at most {MADE} were expected")

    def _is_held(self, name: str, value: np.ndarray) -> bool:
        """Whether a value is kept: a few whole numbers, which all that is computed with them asks for again."""
        return name not in self._open and self.dtype_of(name) in ("i64", "i32") and value.size <= SMALL

    def _run(
        self, node: NodeProto, values: Mapping[str, np.ndarray], sizes: Mapping[str, int], *, own: bool = False
    ) -> list[Any]:
        if Facts.SIZE_QUERY in onnx_facts(node.op_type) and not self._is_known(node.input[0]):
            return [self._asked(node, sizes)]
        feeds = {name: values[name] if name in values else self._load(name) for name in node.input if name}
        if node.op_type == "Cast":
            if self.dtype_of(node.input[0]) == self.dtype_of(node.output[0]):
                return list(feeds.values())
            return run_arrays(self.model, node, self._own(feeds))
        if own:
            return run_arrays(self.model, node, self._own(feeds))
        try:
            return run_arrays(self.model, node, feeds)
        except FAILURES:
            return run_arrays(self.model, node, self._own(feeds))

    def _own(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values in the dtypes that the model has for them."""
        rows = {name: DTYPES.get(self.dtype_of(name) or "") for name in feeds}
        return {name: value.astype(row.numpy if (row := rows[name]) else value.dtype) for name, value in feeds.items()}

    def _is_floating(self, name: str) -> bool:
        return self.dtype_of(name) in FLOATING

    def _load(self, name: str) -> np.ndarray:
        constant = self.stored(name)
        return np.zeros(0) if constant is None else _wide(constant.load())

    def _asked(self, node: NodeProto, sizes: Mapping[str, int]) -> np.ndarray:
        known = self.type_of(node.input[0])
        shape = [size if isinstance(size, int) else sizes[size or ""] for size in known.shape] if known else []
        if node.op_type == "Size":
            return np.array(int(np.prod(shape)), np.int64)
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        return np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)

    def sampled(self, name: str) -> list[np.ndarray] | None:
        """The elements for each try of the open sizes; None where a node cannot be evaluated."""
        if name not in self._sampled:
            try:
                if name in self._open:
                    self._sampled[name] = [self.evaluate(name, sizes) for sizes in self._tries()]
                else:
                    self._sampled[name] = [self.evaluate(name)] * self.tries
            except UnsupportedModelError:
                self._sampled[name] = None
        return self._sampled[name]

    def shapes(self, known: TensorType) -> list[tuple[int, ...]] | None:
        """The shape of a value of this type for each try; None where a size has no name."""
        if any(not isinstance(size, int) and size not in self._symbols for size in known.shape):
            return None
        return [tuple(_number(size, sizes) for size in known.shape) for sizes in self._tries()]

    def _tries(self, of: tuple[tuple[int, int], ...] = SAMPLES) -> Iterator[dict[str, int]]:
        for first, step in of:
            yield {symbol: first + place * step for symbol, place in self._symbols.items()}

    @property
    def tries(self) -> int:
        """How many there are."""
        return len(SAMPLES)

    def same_in_all(self, name: str) -> np.ndarray | None:
        """The elements of an open value that does not depend on the open sizes after all."""
        found = self.sampled(name)
        if found is None or any(not np.array_equal(found[0], other) for other in found[1:]):
            return None
        return found[0] if self._holds_far_off(name, found[0]) else None

    def _holds_far_off(self, name: str, value: np.ndarray) -> bool:
        """Whether a value is the same for very small and very large sizes too, where anything in its chain could bound it."""
        computed = [node for node in self.chain(name) if any(output in self._open for output in node.output)]
        facts = reduce(or_, (onnx_facts(node.op_type) for node in computed), Facts.NONE)
        if Facts.PIECEWISE not in facts:
            return True
        if Facts.SIZED_BY_VALUE in facts:  # far tries would fill the memory
            return False
        try:
            return all(np.array_equal(value, self.evaluate(name, sizes)) for sizes in self._tries(FAR_SAMPLES))
        except UnsupportedModelError:
            return False


def _number(size: Dim, sizes: Mapping[str, int]) -> int:
    return size if isinstance(size, int) else sizes[str(size)]


def _is_static(known: TensorType | None) -> bool:
    return known is not None and known.static_shape is not None


def _wide(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind in "fV" and array.dtype.names is None else array
