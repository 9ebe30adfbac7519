"""`compile` and `tune`: a model is opened, fused, lowered and checked."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from reparam_compiler.api.fusing import fuse as fuse_model
from reparam_compiler.checking.compiled import verify_compiled
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.models.opening import frontend_for, given_inputs, opened

if TYPE_CHECKING:
    from reparam_compiler.lowering import CompileOptions, Executable, TuneResult

log = logging.getLogger(__name__)


def compile(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    target: str | Mapping[str, Any] | None = None,
    fuse: bool = True,
    database: str | os.PathLike[str] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    options: "CompileOptions | None" = None,
    verify: bool = True,
) -> "Executable":
    """Machine code for a model, through TVM, by schedules that need no search.

    Args:
        model: as for `fuse`.
        example_inputs: for models that do not know their input shapes.
        target: "llvm", "cuda", an old-style string ("llvm -mcpu=znver3 -num-cores 2"), a tag or a dict; None is this machine.
        fuse: fuse the model first, as `reparam_compiler.fuse` does by default. A model that `fuse` cannot read is compiled as
            it is, and a log line says so.
        database: a folder that `tune` wrote.
        input_shapes: a shape for each input, by name, that has none or a symbolic one.
        options: how TVM's passes run, and what of their work is kept as text.
        verify: run the result once, and the model as it was given in its own runtime, and compare the outputs. Done where this
            machine can run both; a log line says where it was not.

    Raises:
        TvmMissingError: apache-tvm is not installed.
        UnsupportedModelError: the model is of no kind that can be compiled.
        LoweringError: a shape is missing, TVM cannot import an op, or the target is not one.
        VerificationError: the fused model is off by more than rounding: `fuse=False` compiles the model as it is; or the
            compiled one is, where TVM misreads an op: `verify=False` gives it all the same.
    """
    from reparam_compiler import lowering
    from reparam_compiler.lowering.importing.importer import checked_shapes

    shapes = checked_shapes(input_shapes)
    given = _inputs_to_lower(model, example_inputs, shapes)
    settings = options or lowering.CompileOptions()
    made = lowering.compile(
        _fused_to_lower(model, given) if fuse else model,
        given,
        target=target,
        database=None if database is None else Path(database),
        input_shapes=shapes,
        options=settings,
    )
    if verify:
        verify_compiled(made, model, given, max_error=settings.max_error)
    return made


def tune(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    *,
    database: str | os.PathLike[str],
    target: str | Mapping[str, Any] | None = None,
    fuse: bool = True,
    trials: int = 256,
    repeat: int = 3,
    number: int = 1,
    timeout: float = 30.0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: bool = True,
) -> "TuneResult":
    """Measures candidates for every kernel of a model on this machine; `compile(database=…)` takes the best of them.

    A search that was killed goes on where it stopped: what `database` holds counts towards `trials`. `repeat` measurements of
    `number` runs each, at most `timeout` seconds for one candidate. The other arguments: see `compile`.
    """
    from reparam_compiler import lowering
    from reparam_compiler.lowering.importing.importer import checked_shapes

    shapes = checked_shapes(input_shapes)
    given = _inputs_to_lower(model, example_inputs, shapes)
    return lowering.tune(
        _fused_to_lower(model, given) if fuse else model,
        given,
        target=target,
        trials=trials,
        database=Path(database),
        repeat=repeat,
        number=number,
        timeout=timeout,
        input_shapes=shapes,
        progress=progress,
    )


def _inputs_to_lower(model: Any, example_inputs: Any, shapes: Mapping[str, Sequence[int]]) -> Sequence[Any] | None:
    """The example inputs as a tuple; zeros of these shapes where a module has none. Raises LoweringError as `zeros_of`."""
    from reparam_compiler.lowering.importing.importer import zeros_of

    if example_inputs is None and shapes and isinstance(model, nn.Module):
        return zeros_of(model, shapes)
    return given_inputs(example_inputs)


def _fused_to_lower(model: Any, inputs: Sequence[Any] | None) -> Any:
    """The fused model; the model itself where `fuse` cannot read or run it: what is wrong then, the importer says.

    Raises: UnsupportedModelError for what is no model at all.
    """
    if isinstance(model, str | os.PathLike) and not Path(model).is_file():
        return model
    model = opened(model)
    if not isinstance(model, nn.Module):
        frontend_for(model)
    elif inputs is None or any(child.training for child in model.modules() if type(child) is not nn.Module):
        return model  # fx holds children in bare Modules, which say nothing of the mode
    try:
        return fuse_model(model, inputs)
    except (UnsupportedModelError, RuntimeError, TypeError, ValueError, IndexError) as refusal:  # the latter: of a forward
        log.warning("%s is compiled as it is, unfused: %s", type(model).__name__, refusal)
        return model
