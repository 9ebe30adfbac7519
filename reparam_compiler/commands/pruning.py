"""`reparam prune | cut`: channels removed from a model, and from other checkpoints of its architecture."""

import json
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from reparam_compiler.commands import report
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
    NoFuse,
    Output,
    Quality,
    Quiet,
    Report,
    RoundTo,
    Shapes,
    Std,
    UnsafeLoad,
    Verbose,
    numbers,
)
from reparam_compiler.commands.printing import console, print_fusions, print_json, print_pruning, print_written, status
from reparam_compiler.core.files import check_place
from reparam_compiler.errors import PruneWarning, UnsupportedModelError

PRUNE_EXAMPLES = (
    "Example, the embedded demo: reparam prune --ratio 0.3\n\n"
    "Example: reparam prune --ratio 0.3 repvgg.onnx --calibration images.npz -o small.onnx\n\n"
    "Example: reparam prune --flops 0.5 --quality high net.pt2 --calibration images/ --ignore 'head*' -o small.pt2\n\n" + MODELS
)
CUT_EXAMPLE = "Example: reparam cut averaged.onnx cut.json -o small-averaged.onnx\n\n" + MODELS


def prune_command(
    ratio: Annotated[
        float | None, typer.Option(help="The share of channels to remove, from 0 to 1.", show_default=False)
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="In place of a ratio: the share of multiply-adds that may remain.")
    ] = None,
    params: Annotated[float | None, typer.Option(help="Likewise: the share of parameters.")] = None,
    latency: Annotated[float | None, typer.Option(help="Likewise: the share of time, measured in ONNX Runtime here.")] = None,
    model: Annotated[
        str | None,
        typer.Argument(help="An .onnx, a .pt2, or package.module:factory. Without: a trained RepVGG on handwritten digits."),
    ] = None,
    output: Annotated[Path | None, Output] = None,
    calibration: Calibration = None,
    quality: Quality = "standard",
    mean: Mean = None,
    std: Std = None,
    importance: Importance = None,
    allocation: Allocation = "uniform",
    layer: Annotated[list[str] | None, typer.Option(help="PATTERN=RATIO: the ratio of some layers. Repeatable.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Where to write which channels were kept (JSON).")] = None,
    round_to: RoundTo = 8,
    min_channels: MinChannels = 1,
    max_ratio: MaxRatio = 1.0,
    ignore: Ignore = None,
    input_shapes: Shapes = None,
    no_fuse: NoFuse = False,
    constant: Constant = False,
    report_file: Report = None,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Fuse MODEL, remove a share of its channels, and refit what is left to calibration data.

    Without MODEL: a demonstration on a small trained RepVGG, with its accuracy and milliseconds at each step.
    """
    if ratio is None and flops is None and params is None and latency is None and not layer:
        raise typer.BadParameter("say how much to remove: --ratio, --flops, --params, --latency or --layer")
    options: dict[str, Any] = {
        "ratio": ratio,
        "flops": flops,
        "params": params,
        "latency": latency,
        "importance": importance,
        "allocation": _layers(layer) or allocation,
        "quality": quality,
        "round_to": round_to,
        "min_channels": min_channels,
        "max_ratio": max_ratio,
        "ignore": tuple(ignore or ()),
    }
    with errors_as_exit_codes(as_json, verbose, quiet):
        from reparam_compiler.commands.loading import loaded
        from reparam_compiler.models.io import check_installed
        from reparam_compiler.reporting.writing import check_report

        if latency is not None:
            check_installed("--latency", "onnx", "onnxruntime")
        if model is None:
            of_a_model = {"--calibration": calibration, "--input-shapes": input_shapes, "--no-fuse": no_fuse}
            of_a_model |= {"--manifest": manifest, "--mean": mean, "--std": std, "--unsafe-load": unsafe_load}
            of_a_model["--report"] = report_file
            if useless := [name for name, value in of_a_model.items() if value not in (None, False)]:
                raise typer.BadParameter(f"without a MODEL there is nothing for {', '.join(useless)}")
            if output is not None:
                check_place(output)
            from reparam_compiler.commands import demo

            print_json(as_json, demo.run(console(as_json), output, options))
            return
        options |= {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std")}
        check_report(report_file)
        native = loaded(model, unsafe_load, constant)
        _prune(model, native, output, manifest, report_file, calibration, input_shapes, options, no_fuse, as_json)


def _layers(given: list[str] | None) -> dict[str, float]:
    """{pattern: ratio} of PATTERN=RATIO."""
    found: dict[str, float] = {}
    for text in given or ():
        pattern, _, ratio = text.rpartition("=")
        try:
            found[pattern] = float(ratio)
        except ValueError:
            pattern = ""
        if not pattern:
            raise typer.BadParameter(f"--layer {text}: expected PATTERN=RATIO, as in 'stages.2.*=0.5'")
    return found


def _prune(
    model: str,
    native: Any,
    output: Path | None,
    manifest: Path | None,
    report_file: Path | None,
    calibration: Path | None,
    input_shapes: str | None,
    options: dict[str, Any],
    no_fuse: bool,
    as_json: bool,
) -> None:
    from reparam_compiler.api.fusing import fuse
    from reparam_compiler.api.pruning import prune
    from reparam_compiler.commands.loading import check_output_for
    from reparam_compiler.commands.stating import stated_inputs
    from reparam_compiler.models.calibration import check_path
    from reparam_compiler.models.io import save_model

    if calibration is not None:
        check_path(calibration)
    stated = stated_inputs(native, input_shapes)
    inputs = stated.inputs if stated.inputs is not None else from_calibration(model, native, calibration)
    if output is not None:
        check_output_for(native, output, inputs)
    if manifest is not None:
        check_place(manifest)
    fusions = None
    if not no_fuse:
        with status(f"fusing {model}"):
            native, fusions = fuse(native, inputs, return_report=True)
    with status("pruning"), warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneWarning)  # it is printed below
        pruned, done = prune(native, inputs, calibration=calibration, return_report=True, **options)
    files: tuple[Path, ...] = ()
    if output is not None:
        with status(f"writing {output}"):
            files = save_model(pruned, output, example_inputs=inputs, open_sizes=stated.open_sizes)
    if manifest is not None:
        done.manifest.save(manifest)
    report.write_pruned(report_file, model, done, fusions)
    out = console(as_json)
    if fusions is not None:
        print_fusions(out, fusions, whole=False)
    print_pruning(out, done)
    if files:
        print_written(out, files)
    else:
        out.print("nothing written: no -o")
    reports = {"report": json.loads(done.to_json()), "fusions": json.loads(fusions.to_json()) if fusions else None}
    named = {"model": model, "output": str(output) if output else None, "files": list(map(str, files))}
    print_json(as_json, named | reports)


def from_calibration(model: str, native: Any, calibration: Path | None) -> tuple[Any, ...] | None:
    """One sample of the calibration data as the inputs of a torch module; None for what states its inputs itself.

    Raises UnsupportedModelError for a module without such data.
    """
    from torch import nn

    from reparam_compiler.commands.loading import first_arrays, samples

    if not isinstance(native, nn.Module):
        return None
    if calibration is None:
        raise UnsupportedModelError(
            f"{model}: pruning needs the input shapes of a torch module: --input-shapes 'x:[1,3,224,224]', or --calibration"
        )
    return samples(first_arrays(calibration), native)


def cut_command(
    model: Annotated[str, typer.Argument(help="Another checkpoint of the architecture that was pruned.")],
    manifest: Annotated[Path, typer.Argument(help="What `reparam prune --manifest` wrote.")],
    output: Annotated[Path, Output],
    input_shapes: Shapes = None,
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="The pruned model was not fused before.")] = False,
    constant: Constant = False,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Cut MODEL where another checkpoint of the same architecture was cut; nothing is refitted."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        from reparam_compiler.api.fusing import fuse
        from reparam_compiler.api.pruning import apply_manifest
        from reparam_compiler.commands.loading import check_output_for, loaded
        from reparam_compiler.commands.stating import stated_inputs
        from reparam_compiler.models.io import save_model

        native = loaded(model, unsafe_load, constant)
        stated = stated_inputs(native, input_shapes)
        check_output_for(native, output, stated.inputs)
        if not no_fuse:
            native = fuse(native, stated.inputs)
        cut = apply_manifest(native, manifest, stated.inputs)
        files = save_model(cut, output, example_inputs=stated.inputs, open_sizes=stated.open_sizes)
        print_written(console(as_json), files)
        written = {"model": model, "manifest": str(manifest), "output": str(output), "files": list(map(str, files))}
        print_json(as_json, written)
