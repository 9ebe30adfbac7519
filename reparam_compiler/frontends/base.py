"""What a frontend is: it reads a native model into a Graph, and writes the difference of two graphs back.

matches(model)                     is this model mine?
read(model, example_inputs)        Reading: the graph, and what is needed to write
Reading.write(after)               a new native model; with inplace=True the caller's own
Reading.compare(after, inputs)     both models run whole in their own runtime, or None where no inputs are known
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from reparam_compiler.interpreter.difference import Difference
from reparam_compiler.ir.graph import Graph

Model = TypeVar("Model")
ModelOut = TypeVar("ModelOut", covariant=True)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole model before and after, run by `runtime` in `dtype` on `inputs` ("example inputs", "random inputs …").

    difference: the largest over all outputs.
    """

    difference: Difference
    dtype: str
    runtime: str
    inputs: str


class Reading(Protocol[ModelOut]):
    """A model that has been read."""

    @property
    def graph(self) -> Graph:
        """The model as a graph; its `Input` nodes come in the order of the model's inputs."""
        ...

    def write(self, after: Graph, *, inplace: bool = False) -> ModelOut:
        """The model that computes `after`, a graph that passes made of `graph`.

        What is not in `diff(graph, after)` is as it was in the caller's model, which is not touched unless `inplace`.
        """
        ...

    def compare(self, after: Graph, example_inputs: Sequence[Any] | None) -> Comparison | None:
        """The model before and after, whole; None where there are no inputs to run it on."""
        ...


class Frontend(Protocol[Model]):
    """A kind of native model."""

    @property
    def name(self) -> str:
        """The kind, as reports print it."""
        ...

    def matches(self, model: object) -> bool:
        """True for models of this kind."""
        ...

    def read(self, model: Model, example_inputs: Sequence[Any] | None = None) -> Reading[Model]:
        """The model as a graph; raises UnsupportedModelError for one that cannot be read."""
        ...
