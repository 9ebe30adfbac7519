"""What was written of a torch model, checked: it runs, and computes what it should (`onnx_written`: the same for ONNX).

    fused    the whole model before and after, in float64, with weights not yet rounded (what `Comparison` states);
             then the written model, as it is stored, and the same outputs
    pruned   the written model, as it is stored, and the pruned graph, which equals its masked reference

What rounding the weights may do to a model is said in `rounding`. A check that cannot be made is left out with a log line:
nothing is raised for what the caller's own model cannot do.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram
from torch.utils import _pytree

from reparam_compiler.checking.rounding import explained, largest_difference
from reparam_compiler.checking.runners import GraphRunner, Outputs, Runner, TorchRunner
from reparam_compiler.checking.tolerances import SAME, SUSPECT, WHOLE_TOLERANCE, agreement, rounded
from reparam_compiler.errors import ReparamError, RewriteError, UnsupportedModelError, VerificationError
from reparam_compiler.frontends.base import Reading
from reparam_compiler.interpreter.difference import Difference, tells
from reparam_compiler.ir.graph import Graph

logger = logging.getLogger(__name__)
NOTHING_FINITE = "no output holds a finite number on the inputs, so that equal outputs prove nothing"
REPORT = "Please report the model: this is a defect of the write-back; verify=False gives the result all the same"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole model before and after, run by `runtime` in `dtype` on `inputs` ("example inputs", "random inputs").

    difference: the largest over all outputs. is_telling: whether any of them is a finite number.
    """

    difference: Difference
    dtype: str
    runtime: str
    inputs: str
    is_telling: bool = True


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


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Two models, run. difference: of their outputs. dtype: what they ran in, in words. expected: what the first one gave."""

    difference: Difference
    dtype: str
    expected: Outputs

    @property
    def is_exact(self) -> bool:
        """Whether that was float64."""
        return self.dtype == "float64"

    @property
    def is_telling(self) -> bool:
        """Whether the first one gave a finite number."""
        return tells(self.expected.values())


def compare(before: Callable[[bool], Runner], after: Callable[[bool], Runner], inputs: Inputs) -> Compared:
    """The largest difference of two models' outputs.

    They run in float64, but for a model that converts to another dtype on its way and fails in float64, or that is another
    function in float64 (it rounds its weights to steps): both run in its own dtype. A wrong rewrite is as wrong in any dtype.

    Args:
        before, after: give the models, in float64 where they are asked for that; one is dropped before the next is made.
        inputs: what they are called with.

    Raises:
        UnsupportedModelError: one of them does not run in its own dtype.
    """

    def apart(exact: bool) -> Compared:
        expected = before(exact).run(inputs.args, inputs.kwargs)
        found = after(exact).run(inputs.args, inputs.kwargs)
        return Compared(largest_difference(expected, found), "float64" if exact else "the model's own dtype", expected)

    wide = None
    try:
        wide = apart(True)
    except UnsupportedModelError as error:
        logger.info("the model does not run in float64: %s", error)
    if wide is not None and wide.difference.relative <= SUSPECT:
        return wide
    own = apart(False)
    if wide is None or own.difference.relative <= min(SUSPECT, wide.difference.relative / 10):
        return own
    return wide


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a written model must compute.

    model: the caller's, which is as it was. inputs: what it and the written one are called with.
    outputs: in float64 where it `is_exact`, else in the model's own dtype. runner, given: what gave them, and for what.
    differs: whether the model itself is not what its graph says; then nothing can be told.
    has_all: whether what is no tensor is among the outputs.
    """

    model: Any
    inputs: Inputs
    outputs: Outputs
    is_exact: bool
    runner: Callable[[], Runner]
    given: Inputs
    differs: Callable[[], bool] = lambda: False
    has_all: bool = True

    @classmethod
    def of_model(cls, model: Any, inputs: Inputs, compared: Compared) -> "Reference":
        """What a model gave when it was compared."""
        exact = compared.is_exact
        return cls(model, inputs, compared.expected, exact, lambda: TorchRunner(model, exact=exact), inputs)

    @classmethod
    def of_graph(cls, model: Any, native: Any, before: Graph, after: Graph, inputs: Inputs) -> "Reference | None":
        """What the graph `after` gives, which passes made of `before`, that of `native`; None where it cannot be run.

        native: the model, or its trace.
        """
        try:
            given = _given_to_graph(native, inputs)
            outputs = GraphRunner.of(after).run(given.args)
        except ReparamError as refusal:
            logger.info("what was written is not compared with its graph: %s", refusal)
            return None

        def differs() -> bool:
            runner = TorchRunner(model, copy="weights shared")
            own, as_read = runner.run(inputs.args, inputs.kwargs), GraphRunner.of(before).run(given.args)
            return len(own) == len(as_read) and not largest_difference(as_read, own).relative <= agreement(runner.stored)

        return cls(model, inputs, outputs, True, lambda: GraphRunner.of(after), given, differs, has_all=False)


def input_tree(native: Any) -> _pytree.TreeSpec | None:
    """What holds the tensors that an exported model is given, whose graph takes them one by one; None for any other model."""
    exported = native.call_spec if isinstance(native, ExportedProgram) else getattr(native.graph._codegen, "pytree_info", None)
    return None if exported is None else exported.in_spec


def _given_to_graph(native: Any, inputs: Inputs) -> Inputs:
    """The inputs of a model as its graph takes them: that of an exported one takes the leaves of trees, one by one."""
    expected = input_tree(native)
    if expected is None:
        return Inputs(_of_graph([*inputs.args, *(inputs.kwargs or {}).values()]))
    leaves, tree = _pytree.tree_flatten((tuple(inputs.args), dict(inputs.kwargs or {})))
    if tree != expected:
        raise UnsupportedModelError(f"the model takes inputs of the structure {expected}; found {tree}")
    return Inputs(_of_graph(leaves))


def _of_graph(values: Sequence[Any]) -> list[Any]:
    """The values without flags, numbers and None, which a graph has as they were when it was read."""
    return [value for value in values if value is not None and not isinstance(value, bool | int | float | str)]


def compare_fused(model: Any, reading: Reading[Any], after: Graph, inputs: Inputs) -> tuple[Comparison, Compared]:
    """A torch model and what will be written of it, its new weights not yet rounded, in float64 where both can.

    Raises:
        VerificationError: they differ by more than rounding. The caller's model is as it was.
    """
    found = compare(
        lambda exact: TorchRunner(model, exact=exact),
        lambda exact: TorchRunner(reading.write(after, exact=exact), exact=exact, copy="none"),
        inputs,
    )
    checked(found.difference, WHOLE_TOLERANCE if found.is_exact else math.inf)
    return Comparison(found.difference, found.dtype, "torch", inputs.words, found.is_telling), found


def check_stored(written: Any, reference: Reference) -> Outputs | None:
    """What was written, run as it is stored, computes what it should.

    One run in its own dtype settles that for most models; where it leaves the question open, one in float64 follows.

    Returns:
        What it gives in its own dtype; None where neither it nor the caller's model runs in that.

    Raises:
        RewriteError: it does not run, and the caller's model does.
        VerificationError: it computes something else, by more than rounding does to this model.
    """
    if not tells(reference.outputs.values()):
        logger.info("what was written is not told from others: %s", NOTHING_FINITE)
    own = run_written(written, reference.model, reference.inputs)
    if own is not None and _fits(own, reference):
        return own.outputs
    exact = None
    if reference.is_exact:
        try:
            exact = _run(TorchRunner(written, exact=True), reference.inputs)
        except UnsupportedModelError as error:
            logger.info("what was written does not run in float64: %s", error)
    found = exact or own
    if found is None or (exact is not None and _fits(exact, reference)) or _excused(found, reference):
        return None if own is None else own.outputs
    checked(largest_difference(reference.outputs, found.outputs), _tolerance(found, reference))
    return None


def check_parts(written: Any, model: Any, inputs: Inputs) -> tuple[Compared, Outputs | None]:
    """A model that was fused in parts, as its weights are stored, beside the model; and what it gives in its own dtype.

    Raises:
        RewriteError, VerificationError: as `check_stored`.
    """
    compared = compare(lambda exact: TorchRunner(model, exact=exact), lambda exact: TorchRunner(written, exact=exact), inputs)
    return compared, check_stored(written, Reference.of_model(model, inputs, compared))


def check_same(written: Any, expected: Outputs, inputs: Inputs) -> None:
    """What was written in place gives what its copy gave before; raises VerificationError where it does not."""
    found = TorchRunner(written, copy="weights shared").run(inputs.args, inputs.kwargs)
    apart = largest_difference(expected, found)
    if not apart.relative <= SAME:
        advice = "Its copy was right, so this is a defect of the write in place: the model has been changed, load it anew."
        raise VerificationError("output", apart.max_abs, SAME * apart.max_abs / apart.relative, advice)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a model gave. stored: the coarsest dtype of its weights."""

    outputs: Outputs
    stored: str


def run_written(written: Any, model: Any, inputs: Inputs) -> Run | None:
    """What was written, run in its own dtype; None where it does not run, and neither does the caller's model.

    Raises RewriteError where the caller's does.
    """
    try:
        return _run(TorchRunner(written, copy="weights shared"), inputs)
    except UnsupportedModelError as error:
        try:
            _run(TorchRunner(model, copy="weights shared"), inputs)
        except UnsupportedModelError as own:
            logger.info("what was written does not run, as the model itself does not: %s", own)
            return None
        raise RewriteError(f"what was written does not run: {error}. {REPORT}") from error


def _run(runner: TorchRunner, inputs: Inputs) -> Run:
    return Run(runner.run(inputs.args, inputs.kwargs), runner.stored)


def _tolerance(found: Run, reference: Reference) -> float:
    return rounded(found.stored) if reference.is_exact else agreement(found.stored)


def _fits(found: Run, reference: Reference) -> bool:
    if not reference.has_all and len(found.outputs) != len(reference.outputs):
        return True  # outputs that are no tensors: which is which is not known
    return largest_difference(reference.outputs, found.outputs).relative <= _tolerance(found, reference)


def _excused(found: Run, reference: Reference) -> bool:
    given = reference.given
    try:
        return explained(reference.outputs, found.outputs, reference.runner, given.args, given.kwargs) or reference.differs()
    except ReparamError as refusal:
        logger.info("whether the model is what its graph says was not told: %s", refusal)
        return True


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
