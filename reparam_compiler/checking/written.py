"""What was written of a torch model, checked: it runs, and computes what it should (`onnx_written`: the same for ONNX).

    fused    the whole model before and after, in float64, with weights not yet rounded
    pruned   the written model and the pruned graph, which equals its masked reference

A check that cannot be made is left out with a log line: nothing is raised for what the caller's own model cannot do.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram

from reparam_compiler.checking.runners import GraphRunner, Outputs, Runner, TorchRunner
from reparam_compiler.checking.tolerances import ROUNDED_TOLERANCE, SAME, SUSPECT, WHOLE_TOLERANCE
from reparam_compiler.errors import ReparamError, RewriteError, UnsupportedModelError, VerificationError
from reparam_compiler.frontends.base import Reading
from reparam_compiler.interpreter.difference import EXACT, Difference, difference
from reparam_compiler.ir.graph import Graph

logger = logging.getLogger(__name__)
UNEQUAL = Difference(math.inf, math.inf)
REPORT = "Please report the model: this is a defect of the write-back; verify=False gives the result all the same"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole model before and after, run by `runtime` in `dtype` on `inputs` ("example inputs", "random inputs").

    difference: the largest over all outputs.
    """

    difference: Difference
    dtype: str
    runtime: str
    inputs: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model is run on. words: where these are from, for reports."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any] | None = None
    words: str = "example inputs"

    @classmethod
    def of(cls, model: Any, example_inputs: Sequence[Any] | None) -> "Inputs | None":
        """The example inputs; those that a program brings with it where there are none."""
        if example_inputs is not None:
            return cls(example_inputs)
        if isinstance(model, ExportedProgram) and model.example_inputs is not None:
            args, kwargs = model.example_inputs
            return cls(args, kwargs, "the program's own example inputs")
        return None


def largest_difference(expected: Outputs, found: Outputs) -> Difference:
    """The largest relative difference of outputs, paired in their order; infinite where there is another number of them."""
    if len(expected) != len(found):
        return UNEQUAL
    pairs = zip(expected.values(), found.values(), strict=True)
    return max((difference(a, b) for a, b in pairs), key=lambda apart: apart.relative, default=EXACT)


def same_function(model: Any, trace: Any, args: Sequence[Any]) -> bool:
    """Whether a trace computes what its model does, but for rounding. True where the model itself fails on the inputs.

    It is a copy of the model that runs: a forward() may write to parameters, or count its calls.
    """
    try:
        expected = TorchRunner(model).run(args)
    except UnsupportedModelError as error:
        logger.info("%s", error)
        return True
    try:
        found = TorchRunner(trace, copy="none").run(args)
    except UnsupportedModelError as error:
        logger.info("%s", error)
        return False
    return largest_difference(expected, found).relative <= SAME


def compare(before: Callable[[bool], Runner], after: Callable[[bool], Runner], inputs: Inputs) -> tuple[Difference, str]:
    """The largest difference of two models' outputs, and the dtype that they ran in.

    That is float64, but for a model that converts to another dtype on its way and fails in float64, or that is another function
    in float64 (it rounds its weights to steps): both run in its own dtype. A wrong rewrite is as wrong in any dtype.

    Args:
        before, after: give the models, in float64 where they are asked for that; one is dropped before the next is made.
        inputs: what they are called with.

    Raises:
        UnsupportedModelError: one of them does not run in its own dtype.
    """

    def apart(exact: bool) -> Difference:
        expected = before(exact).run(inputs.args, inputs.kwargs)
        return largest_difference(expected, after(exact).run(inputs.args, inputs.kwargs))

    wide = None
    try:
        wide = apart(True)
    except UnsupportedModelError as error:
        logger.info("the model does not run in float64: %s", error)
    if wide is not None and wide.relative <= SUSPECT:
        return wide, "float64"
    own = apart(False)
    if wide is None or own.relative <= min(SUSPECT, wide.relative / 10):
        return own, "the model's own dtype"
    return wide, "float64"


def compare_fused(model: Any, reading: Reading[Any], after: Graph, inputs: Inputs | None) -> Comparison | None:
    """A torch model and what will be written of it; None where there are no inputs.

    Both run in float64 where they can, the new weights not rounded.

    Raises:
        VerificationError: they differ by more than rounding. The caller's model is as it was.
    """
    if inputs is None:
        return None
    apart, dtype = compare(
        lambda exact: TorchRunner(model, exact=exact),
        lambda exact: TorchRunner(reading.write(after, exact=exact), exact=exact, copy="none"),
        inputs,
    )
    checked(apart, WHOLE_TOLERANCE if dtype == "float64" else math.inf)
    return Comparison(apart, dtype, "torch", inputs.words)


def check_pruned(written: Any, graph: Graph, inputs: Inputs | None) -> None:
    """A torch model that was pruned computes the pruned graph.

    Raises:
        VerificationError: it does not. What it makes in its own dtype, where it does not run in float64, may be chaotic: there
            only shapes, and the places of NaN, are compared.
    """
    if inputs is None:
        return
    try:
        expected = GraphRunner.of(graph).run(inputs.args, inputs.kwargs)
    except ReparamError as refusal:
        logger.info("the pruned model was not compared with its graph: %s", refusal)
        return
    found, tolerance = _run_written(written, inputs)
    if len(expected) == len(found):  # else outputs that are no tensors
        checked(largest_difference(expected, found), tolerance)


def _run_written(written: Any, inputs: Inputs) -> tuple[Outputs, float]:
    """What a model gives, in float64 where it runs in it, and by how much that may be off."""
    try:
        return TorchRunner(written, exact=True).run(inputs.args, inputs.kwargs), ROUNDED_TOLERANCE
    except UnsupportedModelError as error:
        logger.info("the written model does not run in float64: %s", error)
    return TorchRunner(written).run(inputs.args, inputs.kwargs), math.inf


def check_runs(written: Any, inputs: Inputs | None) -> None:
    """A program that was written runs on its inputs; raises RewriteError where it does not."""
    if inputs is None:
        return
    try:
        TorchRunner(written, copy="weights shared").run(inputs.args, inputs.kwargs)
    except UnsupportedModelError as error:
        raise RewriteError(f"what was written does not run: {error}. {REPORT}") from error


def checked(apart: Difference, tolerance: float) -> Difference:
    """The difference; raises VerificationError where it is larger than this, or of another shape, or NaN elsewhere.

    What a model makes in float32 may be chaotic (a top-k of near ties): there the proofs of the regions decide.
    """
    if math.isinf(apart.max_abs):
        advice = "Shapes differ, or the places of NaN and infinities. Please report the model: this is a defect of a rewrite."
        raise VerificationError("output", apart.max_abs, 0.0, advice)
    if not apart.relative <= tolerance:
        allowed = tolerance * apart.max_abs / apart.relative if math.isfinite(apart.relative) else 0.0
        raise VerificationError("output", apart.max_abs, allowed)
    return apart
