"""`compile` and `tune`: a model is opened, fused, lowered and checked."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from reparam_compiler.api.fusing import fuse_source
from reparam_compiler.api.modes import outside_modes
from reparam_compiler.api.options import FuseKeywords, FuseOptions, made, takes
from reparam_compiler.api.report import FuseReport
from reparam_compiler.checking.apart import check_apart, first_mixing
from reparam_compiler.checking.compiled import Verdict, verify_compiled
from reparam_compiler.errors import LoweringError, RewriteError, UnsupportedModelError, VerificationError
from reparam_compiler.frontends.torch.module_state import in_training_mode
from reparam_compiler.ir import ops
from reparam_compiler.models.at_batch import at_batch, own_batch
from reparam_compiler.models.opening import Source, open

if TYPE_CHECKING:
    from reparam_compiler.lowering import CompileOptions, Executable, Rpc, SearchOptions, TensorSpec, TuneResult, TuneStep
    from reparam_compiler.lowering.search.verifying import Verification

log = logging.getLogger(__name__)
Shapes = Mapping[str, Sequence[int]]
UNREAD = (UnsupportedModelError, RuntimeError, TypeError, ValueError, IndexError)
"""What reading a model raises that may compile all the same; all but the first come from its own forward."""


@takes(FuseOptions)
@outside_modes()
def compile(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    target: str | Mapping[str, Any] | None = None,
    fuse: bool = True,
    database: str | os.PathLike[str] | None = None,
    input_shapes: Shapes | None = None,
    batches: Sequence[int] | None = None,
    options: "CompileOptions | None" = None,
    verify: bool = True,
    **fusing: Unpack[FuseKeywords],
) -> "Executable":
    """Machine code for a model, through TVM, by schedules that need no search.

    >>> import torch
    >>> executable = compile(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8))
    >>> executable.run(torch.zeros(1, 3, 8, 8))[0].shape
    (1, 8, 6, 6)
    >>> any_number = compile(torch.nn.Linear(3, 2).eval(), torch.zeros(1, 3), batches=(1, 8))
    >>> any_number.run(torch.zeros(11, 3))[0].shape  # eight together, and three one by one
    (11, 2)

    Args:
        model: as for `fuse`.
        example_inputs: for models that do not know their input shapes, or leave some sizes open.
        target: None and "llvm" are this machine; or "cuda", "opencl", "llvm -mcpu=x86-64" (any x86-64, and slower: a log line
            says how), "llvm -mcpu=x86-64-v2,v3,v4" (code for each, of which `load` takes what its machine runs best), another
            old-style string ("llvm -mcpu=znver3 -num-cores 2"), a tag or a dict.
        fuse: fuse the model first. A model that `fuse` cannot read is compiled as it is, and a log line says so.
        policy, cost_model, keep_bn: how to fuse it; as for `fuse`. (An artifact has no inputs for weights: they are constants.)
        database: a folder that `tune` wrote; a log line says where none of its records is for the target.
        input_shapes: a shape for each input, by name, that has none or a symbolic one.
        batches: the numbers of samples to compile for; `run` then takes any number of them, and splits it into these. The batch
            is the first axis of every input that has axes. None is the one size of the model or its inputs.
        options: how TVM's passes run, and what of their work is kept as text.
        verify: check the fused model as `fuse` does; run the result once, and the model as it was given in its own runtime,
            and compare the outputs. For a target that does not run here the same import is compiled for this machine too,
            and compared: what was misread is found, and the kernels are not. A log line says where nothing was compared.

    Returns:
        An `Executable`, on this machine's device of the target's kind where there is one: `run`, `time`, `save`. With several
        targets it runs the code for the best that this machine has.

    Raises:
        TvmMissingError: apache-tvm is not installed.
        UnsupportedModelError: the model is of no kind that can be compiled.
        LoweringError: the target is not one, the database holds no records, or a setting is unknown, all of which is found
            before the model is fused; a shape is missing, or TVM cannot import an op; or `batches` are given, and the model
            fixes its batch, or computes a sample otherwise beside others.
        VerificationError: the fused model is off by more than rounding: `fuse=False` compiles the model as it is; or the
            compiled one is, where TVM misreads an op: `verify=False` gives it all the same.
    """
    how = made(FuseOptions, "compile", fusing) if fuse else None
    executable, _ = compile_reported(
        model,
        example_inputs,
        how,
        target=target,
        database=database,
        input_shapes=input_shapes,
        batches=batches,
        options=options,
        verify=verify,
    )
    return executable


@outside_modes()
def compile_reported(
    model: Any,
    example_inputs: Sequence[Any] | None,
    how: FuseOptions | None,
    *,
    target: str | Mapping[str, Any] | None,
    database: str | os.PathLike[str] | None,
    input_shapes: Shapes | None,
    batches: Sequence[int] | None,
    options: "CompileOptions | None",
    verify: bool,
) -> tuple["Executable", FuseReport | None]:
    """What `compile` gives, and what `fuse` did before: None where it could not read the model, or was not asked for.

    how: how to fuse it; None compiles it as it is.
    """
    from reparam_compiler import lowering
    from reparam_compiler.lowering.build import check
    from reparam_compiler.lowering.runtime.batches import checked_batches

    settings = options or lowering.CompileOptions()
    resolved = check(target, database, settings)
    sizes = () if batches is None else checked_batches(batches)
    source = _open(model, example_inputs, input_shapes)
    fused = _fused(source, how, verify=verify) if how is not None else _Fused(source.model)
    subject, unfused = fused.model, fused.why_not
    opened = _Opened(source, subject, input_shapes, sizes, settings.max_error)
    executable = opened.compiled(target=resolved, database=database, options=settings)
    if unfused:
        log.warning("%s is compiled as it is, unfused: %s", type(source.model).__name__, unfused)
    if sizes:
        opened.check_apart(_runnable(executable))
    if verify:
        verdict = opened.verdict(_runnable(executable), len(executable.targets))
        executable = replace(executable, verified=verdict.compared, verification=verdict.words)
    return executable, fused.report


@dataclass(frozen=True, eq=False)
class _Opened:
    """A model that was opened and, where it can be, fused: what is compiled of it, and compared with it.

    source: as the caller gave it. subject: what is compiled.
    sizes: the batches that are asked for, ascending; none for the model's own size.
    max_error: the relative error that a layer's algorithm may have.
    """

    source: Source
    subject: Any
    input_shapes: Shapes | None
    sizes: tuple[int, ...]
    max_error: float

    def compiled(self, **how: Any) -> "Executable":
        """The subject, compiled at each size. how: target, database, options."""
        from reparam_compiler import lowering
        from reparam_compiler.lowering.build import Form, compile_forms

        if not self.sizes:
            model = _at_its_sizes(self.subject, self.source, self.input_shapes)
            return lowering.compile(model, self.source.inputs, input_shapes=self.input_shapes, **how)
        forms = []
        for size in self.sizes:
            form = at_batch(self.source, self.subject, self.input_shapes, size)
            forms.append(Form(_at_its_sizes(form.model, self.source, form.shapes), form.inputs, form.shapes, size))
        return compile_forms(forms, any_batch=True, **how)

    @cached_property
    def here(self) -> "Executable":
        """The same, compiled for this machine: what an importer reads has nothing to do with a target.

        A batch of 1 alone shows nothing of what a model mixes; one of 2 stands beside it.
        """
        from reparam_compiler import lowering

        opened = replace(self, sizes=(1, 2)) if self.sizes == (1,) else self
        return opened.compiled(options=lowering.CompileOptions(max_error=self.max_error, measure=False))

    def check_apart(self, runnable: "Sequence[Executable]") -> None:
        """Raises LoweringError where the model computes a sample otherwise beside others, or nothing here can tell."""
        from reparam_compiler.lowering.importing.batches import one_size

        shows = runnable if self.sizes != (1,) else ()
        for executable in shows or (self.here,):
            mixing = partial(self._mixing, executable.inputs)
            check_apart(executable, max_error=self.max_error, advice=one_size(), mixing=mixing)

    def _mixing(self, inputs: "Sequence[TensorSpec]") -> str:
        """The op that mixes samples, where the model can be read and run on some."""
        try:
            return first_mixing(self.source.graph, inputs)
        except (UnsupportedModelError, RewriteError, ValueError):
            return ""

    def verdict(self, runnable: "Sequence[Executable]", targets: int) -> Verdict:
        """What comparisons say of the code for each target that runs here; where none does, of the same import made for it.

        Raises: VerificationError where it computes something else than the model.
        """
        verdicts = [self._compared(executable) for executable in runnable]
        if verdicts:
            worst = next((verdict for verdict in verdicts if not verdict.compared), verdicts[0])
            number = f"; so it is for {len(runnable)} of {targets} targets, which run here" if targets > 1 else ""
            return replace(worst, words=worst.words + number)
        try:
            here = self.here
        except LoweringError as refusal:
            return Verdict(False, f"its code does not run here, nor does the model compile for this machine: {refusal}")
        what = "the same import, compiled for this machine,"
        try:
            verdict = self._compared(here)
        except VerificationError as wrong:
            raise VerificationError(wrong.node, wrong.max_abs_err, wrong.tolerance, wrong.advice, what) from None
        words = f"its code does not run here; {what} was {'' if verdict.compared else 'not '}compared: {verdict.words}"
        log.info("%s is compiled: %s", self.source.name or type(self.source.model).__name__, words)
        return Verdict(False, words)

    def _compared(self, executable: "Executable") -> Verdict:
        source, samples = self.source, own_batch(self.source) if self.sizes else None
        return verify_compiled(
            executable, source.model, source.inputs, name=source.name, max_error=self.max_error, samples=samples
        )


def _runnable(executable: "Executable") -> "list[Executable]":
    """What was compiled, for each of its targets that this machine runs."""
    each = (executable.taking(target) for target in executable.targets)
    return [one for one in each if one.runs_here]


@takes(FuseOptions)
@outside_modes()
def tune(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    database: str | os.PathLike[str],
    target: str | Mapping[str, Any] | None = None,
    fuse: bool = True,
    trials: int = 256,
    early_stopping: int | None = None,
    max_seconds: float | None = None,
    repeat: int = 5,
    number: int = 1,
    min_repeat_ms: int = 0,
    timeout: float = 30.0,
    parallel: int | None = None,
    tasks: Sequence[str] = (),
    input_shapes: Shapes | None = None,
    rpc: "Rpc | None" = None,
    progress: bool = True,
    listener: "Callable[[TuneStep], None] | None" = None,
    **fusing: Unpack[FuseKeywords],
) -> "TuneResult":
    """Measures candidates for every kernel of a model on this machine; `compile(database=…)` takes the best of them.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as records:
    ...     result = tune(torch.nn.Conv2d(3, 8, 1).eval(), torch.zeros(1, 3, 4, 4), database=records, trials=2, progress=False)
    >>> result.measured
    2

    Args:
        model, example_inputs, fuse, input_shapes: as for `compile`.
        database: the folder of the records, which is made where it is not there. A search that was killed goes on where it
            stopped: what the folder holds for this model counts towards `trials`.
        target: as for `compile`; one that this machine runs, or the devices of `rpc`.
        trials: measurements in all; 0 measures nothing, and lists the kernels.
        early_stopping: new measurements in a row without a gain, after which the search ends.
        max_seconds: after which no measurement begins.
        repeat, number: measurements of one candidate, with cold caches, and runs in each; min_repeat_ms: or as many runs as
            take so long.
        timeout: seconds that one candidate may take to run, and as many to be built.
        parallel: candidates that are built at once; None is one a core. They are measured one at a time.
        tasks: which kernels: their numbers in the result's list, as "2" or "0-3", or parts of their names; all by default.
        rpc: devices far away that measure instead of this machine, as many candidates at once as there are: an `Rpc`. `target`
            must be theirs then, and `Rpc.compiler` what links code for it.
        progress: say how far it is: drawn on stderr where that is a terminal, else in the log.
        listener: is told of every measurement: a `TuneStep`.
        policy, cost_model, keep_bn: how to fuse it; as for `fuse`. (An artifact has no inputs for weights: they are constants.)

    Returns:
        A `TuneResult`: how many points were measured, the best seconds of each kernel, and those of a run by rule and with
        what was found. What is taken has beaten the rule in the running net; Ctrl-C ends the search with what is known.

    Raises:
        TvmMissingError: apache-tvm is not installed.
        LoweringError: the target is of no kind that is searched for, or not this machine's without `rpc`; a number is too
            small; or the folder cannot be made: all before the model is fused. Else as `compile`.
        UnsupportedModelError, VerificationError: as `compile`.
    """
    from reparam_compiler import lowering

    how = made(FuseOptions, "tune", fusing)
    options = lowering.SearchOptions(
        trials=trials,
        early_stopping=early_stopping,
        max_seconds=max_seconds,
        repeat=repeat,
        number=number,
        min_repeat_ms=min_repeat_ms,
        timeout=timeout,
        parallel=parallel,
        tasks=tuple(tasks),
    )
    result, _ = tune_reported(
        model,
        example_inputs,
        how if fuse else None,
        database=database,
        target=target,
        options=options,
        input_shapes=input_shapes,
        rpc=rpc,
        progress=progress,
        listener=listener,
    )
    return result


@outside_modes()
def tune_reported(
    model: Any,
    example_inputs: Sequence[Any] | None,
    how: FuseOptions | None,
    *,
    database: str | os.PathLike[str],
    target: str | Mapping[str, Any] | None,
    options: "SearchOptions",
    input_shapes: Shapes | None,
    rpc: "Rpc | None",
    progress: bool,
    listener: "Callable[[TuneStep], None] | None",
) -> tuple["TuneResult", FuseReport | None]:
    """What `tune` gives, and what `fuse` did before: None where it could not read the model, or was not asked for.

    how: how to fuse it; None tunes it as it is.
    """
    from reparam_compiler import lowering
    from reparam_compiler.lowering.search.asked import check_search

    search = check_search(target, database, options, rpc)
    source = _open(model, example_inputs, input_shapes)
    fused = _fused(source, how, verify=True) if how is not None else _Fused(source.model)
    if fused.why_not:
        log.warning("%s is tuned as it is, unfused: %s", type(source.model).__name__, fused.why_not)
    result = lowering.tune(
        _at_its_sizes(fused.model, source, input_shapes),
        source.inputs,
        target=search.backend.target,
        database=search.folder,
        options=search.options,
        input_shapes=input_shapes,
        rpc=rpc,
        progress=progress,
        listener=listener,
    )
    return result, fused.report


@outside_modes()
def verify_records(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    database: str | os.PathLike[str],
    target: str | Mapping[str, Any] | None = None,
    fuse: bool = True,
    input_shapes: Shapes | None = None,
    keep: bool = False,
) -> "Verification":
    """Measures what a folder of records decides for a model again, beside the rule's kernels in the running net.

    Args: as for `tune`, by which the folder was made.
        keep: append what was measured to it, so that what lost decides no longer; without, it stays as it is.

    Raises: LoweringError where the target is not this machine's, or the folder decides nothing for it; else as `compile`.
    """
    from reparam_compiler.lowering.search.asked import SearchOptions, check_search
    from reparam_compiler.lowering.search.records import check_readable
    from reparam_compiler.lowering.search.verifying import verified

    folder = check_readable(Path(database))
    search = check_search(target, folder, SearchOptions())
    source = _open(model, example_inputs, input_shapes)
    subject = _fused(source, FuseOptions(), verify=True).model if fuse else source.model
    native = _at_its_sizes(subject, source, input_shapes)
    return verified(native, source.inputs, target=search.backend.target, database=folder, input_shapes=input_shapes, keep=keep)


def _open(model: Any, example_inputs: Any, input_shapes: Shapes | None) -> Source:
    """The model, opened, with zeros of these shapes where a module has no inputs. Raises LoweringError as `zeros_of`."""
    from reparam_compiler.lowering.importing.from_torch import zeros_of
    from reparam_compiler.lowering.importing.shapes import checked_shapes

    shapes = checked_shapes(input_shapes)
    source = open(model, example_inputs, weights_are_constant=True)
    if source.inputs is None and shapes and source.kind in ("torch.nn", "torch.fx"):
        return replace(source, inputs=zeros_of(source.model, shapes))
    return source


@dataclass(frozen=True, slots=True, eq=False)
class _Fused:
    """A model that is fused, and what was done; or the model as it was, and why where that is worth a line."""

    model: Any
    report: FuseReport | None = None
    why_not: str = ""


def _fused(source: Source, options: FuseOptions, *, verify: bool) -> _Fused:
    """The model itself where `fuse` cannot read or run it: what is wrong, the importer says."""
    if source.kind in ("torch.nn", "torch.fx") and (source.inputs is None or in_training_mode(source.model)):
        return _Fused(source.model)
    try:
        _check_evaluated(source)
        return _Fused(*fuse_source(source, options.of_passes(verify=verify)))
    except UNREAD as refusal:
        return _Fused(source.model, why_not=str(refusal))


def _check_evaluated(source: Source) -> None:
    """Raises LoweringError for a program that was exported in training mode, whose norms TVM's importer takes for evaluated."""
    if source.kind == "torch.export":
        trained = (node.id for node in source.graph if isinstance(node.op, ops.BatchNorm) and node.op.training)
        if (first := next(trained, None)) is not None:
            raise LoweringError(f"{first}: training=True; call model.eval() before torch.export.export()")


def _at_its_sizes(subject: Any, source: Source, input_shapes: Shapes | None) -> Any:
    """An ONNX model with the sizes that it computes as tensors, where the shapes of all its inputs are known."""
    if source.kind != "onnx":
        return subject
    from reparam_compiler.frontends.onnx.fixed_sizes import shapes_for, with_fixed_sizes

    shapes = shapes_for(subject, source.inputs, input_shapes or {})
    try:
        return subject if shapes is None else with_fixed_sizes(subject, shapes)
    except UnsupportedModelError:  # what cannot be read, an old opset, is the importer's to take or to refuse
        return subject
