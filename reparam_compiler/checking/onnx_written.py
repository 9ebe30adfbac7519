"""What was written of an ONNX model, checked: it is valid where the model is, and computes what it should.

    valid      onnx.checker passes it, with its inference of types and shapes; ONNX Runtime, where it is installed, loads it
    computes   fused: what the model computes, both in ONNX Runtime; pruned: what the pruned graph does in float64

A result that is too large to be held while it runs is checked in a file, dropped meanwhile, and written once more.
"""

import logging
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from reparam_compiler.checking.rounding import as_near, explained, largest_difference
from reparam_compiler.checking.runners import GraphRunner, OnnxRunner, Outputs, coarsest
from reparam_compiler.checking.tolerances import agreement
from reparam_compiler.checking.written import NOTHING_FINITE, REPORT, Comparison, checked
from reparam_compiler.errors import ReparamError, RewriteError, UnsupportedModelError, first_line
from reparam_compiler.frontends.onnx import io as onnx_io
from reparam_compiler.frontends.onnx.frontend import named_inputs
from reparam_compiler.frontends.torch.tensors import dtype_word as torch_word
from reparam_compiler.interpreter.difference import tells
from reparam_compiler.ir.graph import Graph

logger = logging.getLogger(__name__)
Stored = ModelProto | Path
"""A model, or the file that it is in while it is checked."""
UNTOLD = "nothing is told of the result: ONNX Runtime and the graph differ on the model itself"
Computes = Callable[[Stored], Comparison | None]
"""Compares what was written with what it should compute; None where it was not run."""


def checked_onnx(
    model: ModelProto, write: Callable[[], ModelProto], computes: Computes
) -> tuple[ModelProto, Comparison | None]:
    """What `write` gives, and how it was compared.

    Raises:
        RewriteError: onnx.checker or ONNX Runtime takes the model, but not what was made of it; or what is written once more
            is not what was checked.
        VerificationError, UnsupportedModelError: what `computes` raises.
    """
    written = write()
    if onnx_io.fits_in_memory(written):
        return written, _check(model, written, computes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx_io.save(written, path)
        told = _checksum(written)
        del written
        comparison = _check(model, path, computes)
    written = write()
    if _checksum(written) != told:
        raise RewriteError(f"the model was written twice, and the second is not the one that was checked. {REPORT}")
    return written, comparison


def _checksum(model: ModelProto) -> tuple[int, ...]:
    """Of the nodes, and of each initializer: of its elements, or of where they lie."""
    weights = model.graph.initializer
    light = onnx_io.copy_without(model, [tensor.name for tensor in weights])
    parts = (part for tensor in weights for part in (_head(tensor), tensor.raw_data or tensor.SerializeToString()))
    return (zlib.crc32(light.SerializeToString(deterministic=True)), *map(zlib.crc32, parts))


def _head(tensor: TensorProto) -> bytes:
    return repr((tensor.name, tensor.data_type, [*tensor.dims])).encode()


def compare_fused_onnx(
    model: ModelProto, stored: Stored, example_inputs: Sequence[Any] | None, before: Callable[[], Graph] | None = None
) -> Comparison | None:
    """Both models in ONNX Runtime, in their own dtypes; on random inputs where none are given and the file has shapes.

    Where rounding the weights of the model moves it by as much, nothing can be told; nor where neither it nor what was made of
    it is what its own graph, `before`, computes.

    Raises:
        UnsupportedModelError: ONNX Runtime does not run the model on the example inputs.
        RewriteError: it does, but does not run what was made of it.
        VerificationError: they differ by more than their dtypes explain.
    """
    inputs = _inputs(model, example_inputs)
    if inputs is None:
        return None
    try:
        expected = OnnxRunner(model).run(inputs)
    except UnsupportedModelError as error:
        if example_inputs is None:
            return None
        raise UnsupportedModelError(f"{error} (the example inputs)") from error
    found = _rerun(stored, inputs)
    apart, tolerance = largest_difference(expected, found), agreement(_coarsest(model, expected))
    dtype = next((str(value.dtype).removeprefix("torch.") for value in expected.values()), "")
    words = "random inputs" if example_inputs is None else "example inputs"
    comparison = Comparison(apart, dtype, "ONNX Runtime", words, tells(expected.values()))
    if apart.relative <= tolerance or explained(expected, found, lambda: OnnxRunner(model), inputs):
        return comparison
    own = None if before is None else _outputs(_graph_runner(model, before()), inputs)
    if own is None or any(largest_difference(own, other).relative <= tolerance for other in (expected, found)):
        checked(apart, tolerance)  # what agrees with the graph alone was read otherwise than ONNX Runtime does
    logger.info(UNTOLD)
    return comparison


def compare_pruned_onnx(
    model: ModelProto, before: Graph, after: Graph, stored: Stored, example_inputs: Sequence[Any] | None
) -> Comparison | None:
    """What was written, in ONNX Runtime, and the pruned graph in float64.

    Where the model itself is not what its own graph computes (a top-k of near ties, random numbers), nothing can be told.

    Raises:
        RewriteError: ONNX Runtime runs the model, but not what was made of it.
        VerificationError: they differ by more than their dtypes explain.
    """
    inputs = _inputs(model, example_inputs)
    if inputs is None or (given := _outputs(OnnxRunner(model), inputs)) is None:
        return None
    found = _rerun(stored, inputs)
    expected = _outputs(_graph_runner(model, after), inputs)
    if expected is None:
        return None
    apart, tolerance = largest_difference(expected, found), agreement(_coarsest(model, found))
    comparison = Comparison(apart, "float64", "ONNX Runtime and the pruned graph", "")
    if not tells(expected.values()):
        logger.info("what was written is not told from others: %s", NOTHING_FINITE)
    if apart.relative <= tolerance or explained(expected, found, lambda: _graph_runner(model, after), inputs):
        return comparison
    own = _outputs(_graph_runner(model, before), inputs)
    if own is not None and as_near(expected, found, own, given):
        logger.info("%.1e apart, and the model is as far from its graph", apart.max_abs)
        return comparison
    if own is not None and largest_difference(own, given).relative <= tolerance:
        checked(apart, tolerance)
    logger.info(UNTOLD)
    return comparison


def _coarsest(model: ModelProto, outputs: Outputs) -> str:
    """The coarsest dtype of a model's weights and of what it gives."""
    return coarsest([OnnxRunner(model).stored, *(torch_word(value.dtype) for value in outputs.values())])


def _check(model: ModelProto, stored: Stored, computes: Computes) -> Comparison | None:
    refusal = _refusal_of_checker(stored)
    if refusal is not None and _refusal_of_checker(model) is None:
        raise RewriteError(f"onnx.checker takes the model, but not what was made of it: {refusal}. {REPORT}")
    try:
        from reparam_compiler.checking import onnx_runtime
    except ImportError as missing:
        logger.info("the result was not loaded: %s", missing)
        return None
    refusal = onnx_runtime.refusal_of(stored)
    if refusal is not None and onnx_runtime.refusal_of(model) is None:
        raise RewriteError(f"ONNX Runtime loads the model, but not what was made of it: {refusal}. {REPORT}")
    return computes(stored)


def _refusal_of_checker(stored: Stored) -> str | None:
    """What onnx.checker says against a model; None where it takes it, or cannot be asked (weights that lie elsewhere)."""
    if isinstance(stored, ModelProto) and not onnx_io.fits_in_memory(stored):
        return None
    try:
        onnx.checker.check_model(stored, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return first_line(error)
    return None


def _rerun(stored: Stored, inputs: Sequence[Any]) -> Outputs:
    try:
        return OnnxRunner(stored).run(inputs)
    except UnsupportedModelError as error:
        raise RewriteError(f"ONNX Runtime runs the model, but not what was made of it: {error}. {REPORT}") from error


def _outputs(runner: OnnxRunner | GraphRunner, inputs: Sequence[Any]) -> Outputs | None:
    try:
        return runner.run(inputs)
    except ReparamError as refusal:
        logger.info("%s was not run: %s", runner.name, refusal)
        return None


def _graph_runner(model: ModelProto, graph: Graph) -> GraphRunner:
    def read(args: Sequence[Any]) -> tuple[Graph, Mapping[str, Tensor]]:
        return graph, {name: torch.tensor(array) for name, array in named_inputs(model, args).items()}

    return GraphRunner(read, names=[value.name for value in model.graph.output])


def _inputs(model: ModelProto, example_inputs: Sequence[Any] | None) -> Sequence[Any] | None:
    from reparam_compiler.checking.onnx_runtime import random_inputs

    return random_inputs(model) if example_inputs is None else example_inputs
