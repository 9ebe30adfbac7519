"""`reparam sweep`: what accuracy costs in speed, for each ratio of a range."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reparam_compiler.commands.failing import errors_as_exit_codes
from reparam_compiler.commands.options import (
    MODELS,
    Allocation,
    Calibration,
    Constant,
    Ignore,
    Importance,
    Json,
    MaxRatio,
    Mean,
    MinChannels,
    Model,
    NoFuse,
    Quality,
    Quiet,
    RoundTo,
    Shapes,
    Std,
    UnsafeLoad,
    Verbose,
    numbers,
)
from reparam_compiler.commands.printing import status
from reparam_compiler.commands.pruning import from_calibration
from reparam_compiler.commands.report import show
from reparam_compiler.errors import UnsupportedModelError

if TYPE_CHECKING:
    from reparam_compiler.reporting.page import Page
    from reparam_compiler.reporting.sweeping import Score

EXAMPLES = (
    "Example: reparam sweep repvgg.onnx --calibration images.npz --evaluate test.npz -o sweep.html\n\n"
    "Example: reparam sweep net.pt2 --ratios 0.2:0.6:0.2 --calibration images/ --evaluate mine:accuracy --json\n\n" + MODELS
)


def sweep_command(
    model: Model,
    ratios: Annotated[
        str, typer.Option(help="Shares of channels: FIRST:LAST, FIRST:LAST:STEP, or a list by comma.")
    ] = "0.1:0.9",
    calibration: Calibration = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="How good a model is: an .npz of samples and their `labels`, or package.module:function, called with the "
            "model for a number, the larger the better. Without: the error of the outputs on held-out calibration data.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write: .html, .json or .txt; without: printed.", show_default=False),
    ] = None,
    quality: Quality = "standard",
    mean: Mean = None,
    std: Std = None,
    importance: Importance = None,
    allocation: Allocation = "uniform",
    round_to: RoundTo = 8,
    min_channels: MinChannels = 1,
    max_ratio: MaxRatio = 1.0,
    ignore: Ignore = None,
    input_shapes: Shapes = None,
    no_fuse: NoFuse = False,
    constant: Constant = False,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Prune MODEL by each ratio of a range, and show its accuracy, or the error of its outputs, beside what a run takes."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        from reparam_compiler.commands.loading import loaded
        from reparam_compiler.commands.stating import stated_inputs
        from reparam_compiler.models.calibration import check_path
        from reparam_compiler.reporting.sweeping import check_judged
        from reparam_compiler.reporting.writing import check_report

        asked = _ratios(ratios)
        check_judged(evaluate, calibration)
        check_report(output)
        if calibration is not None:
            check_path(calibration)
        native = loaded(model, unsafe_load, constant)
        stated = stated_inputs(native, input_shapes).inputs
        inputs = stated if stated is not None else from_calibration(model, native, calibration)
        options: dict[str, Any] = {
            "calibration": calibration,
            "quality": quality,
            "mean": numbers(mean, "--mean"),
            "std": numbers(std, "--std"),
            "importance": importance,
            "allocation": allocation,
            "round_to": round_to,
            "min_channels": min_channels,
            "max_ratio": max_ratio,
            "ignore": tuple(ignore or ()),
        }
        show(_page(model, native, inputs, asked, _score(evaluate, inputs), options, no_fuse), output, as_json)


def _ratios(text: str) -> tuple[float, ...]:
    """Those of `--ratios`; raises BadParameter for what is no range and no list."""
    from reparam_compiler.reporting.sweeping import ratios_of

    try:
        return ratios_of(text)
    except ValueError as refusal:
        raise typer.BadParameter(f"--ratios: {refusal}") from None


def _score(evaluate: str | None, inputs: tuple[Any, ...] | None) -> "Score | None":
    """What `--evaluate` names; the samples and the function are looked for before any work."""
    from reparam_compiler.models.io import load_function
    from reparam_compiler.models.labelled import Labelled
    from reparam_compiler.models.opening import open
    from reparam_compiler.reporting.sweeping import Score

    if evaluate is None:
        return None
    if not evaluate.endswith(".npz"):
        if ":" not in evaluate:
            what = "an .npz of samples and their `labels`, or package.module:function"
            raise UnsupportedModelError(f"--evaluate: found {evaluate!r}; expected {what}")
        return Score(evaluate.rpartition(":")[2], load_function(evaluate))
    samples = Labelled.of(Path(evaluate))
    return Score("accuracy", lambda model: samples.accuracy(open(model, inputs, copy=False)))


def _page(
    model: str,
    native: Any,
    inputs: tuple[Any, ...] | None,
    ratios: tuple[float, ...],
    score: "Score | None",
    options: dict[str, Any],
    no_fuse: bool,
) -> "Page":
    """The page of what fusing does to a model, if it is fused, with the sweep of the result."""
    from reparam_compiler.api.fusing import fuse
    from reparam_compiler.models.opening import open
    from reparam_compiler.reporting.gather import page_of_fusing, page_of_models, provenance_here, title_of
    from reparam_compiler.reporting.sweeping import sweep

    title, made = title_of(model), provenance_here(model)
    if no_fuse:
        source = open(native, inputs, copy=False)
        fused, page = native, page_of_models(title, source.frontend.name, source.graph, None, made)
    else:
        with status(f"fusing {model}"):
            fused, report = fuse(native, inputs, return_report=True)
        page = page_of_fusing(title, report, made)
    with status("pruning by each ratio"):
        return replace(page, sweep=sweep(native, fused, inputs, ratios, score, **options))
