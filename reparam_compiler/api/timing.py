"""How long models take in ONNX Runtime here, on one thread, on random inputs of the shapes that they were read with."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.io import save_model


def milliseconds(written: Any, graph: Graph, inputs: Sequence[Any] | None) -> float:
    """The median time of a run of a model that was written from a graph, or from one of the same inputs."""
    from reparam_compiler.frontends.onnx.timing import milliseconds as of_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        save_model(written, path, example_inputs=inputs)
        return of_file(path, input_sizes(graph))


def input_sizes(graph: Graph) -> list[list[int]]:
    """The shapes of a graph's inputs, with 1 for what is open."""
    shapes = [node.type.shape for node in graph if isinstance(node.op, ops.Input) and node.type is not None]
    return [[size if isinstance(size, int) else 1 for size in shape] for shape in shapes]
