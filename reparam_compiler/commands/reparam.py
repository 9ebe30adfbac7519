"""`reparam fuse | prune | inspect | equivalent | compile | run | tune`, also as `python -m reparam_compiler`.

    reparam inspect repvgg.onnx
    reparam fuse repvgg.onnx -o fused.onnx
    reparam equivalent repvgg.onnx fused.onnx --input-shapes 'x:[1,3,224,224]'
    reparam prune --ratio 0.3 repvgg.onnx --calibration images.npz -o small.onnx --manifest cut.json
    reparam prune --flops 0.5 repvgg.onnx --calibration images/ --quality high -o small.onnx
    reparam cut other.onnx cut.json -o small-other.onnx
    reparam compile small.onnx -o module.tar

An error of the library is one line on stderr and the exit code of its class. Outputs are written whole or not at all.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from reparam_compiler.api.comparing import equivalent
from reparam_compiler.api.fusing import fuse, inspect
from reparam_compiler.api.pruning import apply_manifest, prune
from reparam_compiler.commands.options import (
    Allocation,
    Constant,
    Importance,
    Json,
    KeepBn,
    MeasureCosts,
    Model,
    Output,
    Policy,
    Quality,
    Shapes,
    UnsafeLoad,
    numbers,
)
from reparam_compiler.commands.printing import console, print_equivalence, print_fusions, print_json, print_pruning, status
from reparam_compiler.core.calls import by_position
from reparam_compiler.core.files import UNREADABLE, check_place
from reparam_compiler.cost.measure import measure_costs
from reparam_compiler.errors import (
    InfeasiblePruneError,
    PruneWarning,
    ReparamError,
    UnsupportedModelError,
    VerificationError,
)
from reparam_compiler.models import opening
from reparam_compiler.models.io import check_output, inputs_of_shapes, load_model, save_model
from reparam_compiler.models.shapes import parse_shapes
from reparam_compiler.tvmc import commands as tvmc_commands

EXIT_CODES: tuple[tuple[type[ReparamError], int], ...] = (
    (InfeasiblePruneError, 8),
    *tvmc_commands.EXIT_CODES,
)
CODES = (
    "[bold]Exit codes[/]: 0 done · 1 anything else, such as a file that cannot be written · 2 wrong usage · "
    "3 the model cannot be read or written · 4 it cannot be lowered or run · 5 tvm is missing · 6 a rewrite failed · "
    "7 the result differs from the model · 8 nothing can be pruned."
)
MODELS = (
    "[bold]MODEL[/] is an .onnx file, a .pt2 file of torch.export.save, or package.module:factory, which is "
    "imported and called. Files that can run code (.pt, and a .pt2 with pickles in it) need --unsafe-load."
)
STYLE: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
}

app = typer.Typer(
    name="reparam",
    help="Fuse the branches of a ConvNet into plain convs, prune its channels, compile it with TVM.",
    epilog=f"Example: reparam fuse repvgg.onnx -o fused.onnx\n\n{MODELS}\n\n{CODES}",
    **STYLE,
)


@app.command(
    "fuse",
    epilog="Example: reparam fuse repvgg.onnx -o fused.onnx\n\n"
    "Example: reparam fuse reparam_compiler.zoo:repvgg_a0 --input-shapes 'x:[1,3,224,224]' -o a0.pt2\n\n" + MODELS,
)
def fuse_command(
    model: Model,
    output: Annotated[Path, Output],
    input_shapes: Shapes = None,
    policy: Policy = "cost",
    keep_bn: KeepBn = False,
    measure: MeasureCosts = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not prove what was rewritten.")] = False,
    constant: Constant = False,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
) -> None:
    """Make one conv of every block of parallel conv-BN branches, fold the conv-BN pairs that remain, and prove each."""
    with errors_as_exit_codes(as_json):
        native = _loaded(model, unsafe_load, constant)
        inputs = _inputs(native, input_shapes)
        _check_output(native, output, inputs)
        options = _options(policy, keep_bn, measure)
        with status(f"fusing {model}"):
            fused, report = fuse(native, inputs, verify=not no_verify, return_report=True, **options)
        with status(f"writing {output}"):
            save_model(fused, output, example_inputs=inputs)
        out = console(as_json)
        print_fusions(out, report)
        out.print(f"written: {output}", markup=False, highlight=False)
        written = {"model": model, "output": str(output), "options": _as_json(options)}
        print_json(as_json, {**written, "report": json.loads(report.to_json())})


@app.command(
    "inspect",
    epilog="Example: reparam inspect repvgg.onnx\n\nExample: reparam inspect net.pt2 --json | jq '.report.refusals'\n\n"
    + MODELS,
)
def inspect_command(
    model: Model,
    input_shapes: Shapes = None,
    policy: Policy = "cost",
    keep_bn: KeepBn = False,
    measure: MeasureCosts = False,
    constant: Constant = False,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
) -> None:
    """Show what would fuse, what would not and why, and the cost before and after; nothing is written."""
    with errors_as_exit_codes(as_json):
        native = _loaded(model, unsafe_load, constant)
        options = _options(policy, keep_bn, measure)
        with status(f"reading {model}"):
            report = inspect(native, _inputs(native, input_shapes), **options)
        print_fusions(console(as_json), report)
        print_json(as_json, {"model": model, "options": _as_json(options), "report": json.loads(report.to_json())})


@app.command(
    "equivalent",
    epilog="Example: reparam equivalent net.pt2 package.module:deployed --input-shapes 'x:[1,3,224,224]'\n\n" + MODELS,
)
def equivalent_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, as below.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, of any kind.", show_default=False)],
    input_shapes: Annotated[
        str,
        typer.Option("--input-shapes", help="What both take: 'x:[1,3,224,224]', by the names of either.", show_default=False),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(help="The largest relative difference. Without: what the rounding of the weights does.", min=0.0),
    ] = None,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
) -> None:
    """Say whether two models compute the same but for rounding: exit code 0 where they do, 7 where not."""
    with errors_as_exit_codes(as_json):
        one, other = (_loaded(spec, unsafe_load) for spec in (a, b))
        inputs = _inputs_of_either(one, other, input_shapes)
        with status("comparing"):
            found = equivalent(one, other, inputs, tolerance=tolerance)
        print_equivalence(console(as_json), found)
        print_json(as_json, {"a": a, "b": b, "equivalence": json.loads(found.to_json())})
        if not found:
            raise typer.Exit(dict(EXIT_CODES)[VerificationError])


@app.command(
    "prune",
    epilog="Example, the embedded demo: reparam prune --ratio 0.3\n\n"
    "Example: reparam prune --ratio 0.3 repvgg.onnx --calibration images.npz -o small.onnx\n\n"
    "Example: reparam prune --flops 0.5 --quality high net.pt2 --calibration images/ --ignore 'head*' -o small.pt2\n\n"
    + MODELS,
)
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
    calibration: Annotated[
        Path | None,
        typer.Option(help="Inputs as the model will see them: an .npz, an .npy, a folder of .npy or of images; 32 do much."),
    ] = None,
    quality: Quality = "standard",
    mean: Annotated[str | None, typer.Option(help="Images are normalised by: '0.485,0.456,0.406'.")] = None,
    std: Annotated[str | None, typer.Option(help="Images are normalised by: '0.229,0.224,0.225'.")] = None,
    importance: Importance = None,
    allocation: Allocation = "uniform",
    layer: Annotated[list[str] | None, typer.Option(help="PATTERN=RATIO: the ratio of some layers. Repeatable.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Where to write which channels were kept (JSON).")] = None,
    round_to: Annotated[int, typer.Option(min=1, help="Widths go to the nearest multiple; 1: the exact ratio.")] = 8,
    min_channels: Annotated[int, typer.Option(min=1, help="How many channels every layer keeps at least.")] = 1,
    max_ratio: Annotated[float, typer.Option(help="The largest share of its channels that a layer may lose.")] = 1.0,
    ignore: Annotated[list[str] | None, typer.Option(help="A layer, or a pattern, that keeps its width. Repeatable.")] = None,
    input_shapes: Shapes = None,
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="Prune the model as it is.")] = False,
    constant: Constant = False,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
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
    with errors_as_exit_codes(as_json):
        if model is None:
            of_a_model = {"--calibration": calibration, "--input-shapes": input_shapes, "--no-fuse": no_fuse}
            of_a_model |= {"--manifest": manifest, "--mean": mean, "--std": std, "--unsafe-load": unsafe_load}
            if useless := [name for name, value in of_a_model.items() if value not in (None, False)]:
                raise typer.BadParameter(f"without a MODEL there is nothing for {', '.join(useless)}")
            if output is not None:
                check_place(output)
            from reparam_compiler.commands import demo

            print_json(as_json, demo.run(console(as_json), output, options))
            return
        options |= {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std")}
        _prune(
            model, _loaded(model, unsafe_load, constant), output, manifest, calibration, input_shapes, options, no_fuse, as_json
        )


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
    calibration: Path | None,
    input_shapes: str | None,
    options: dict[str, Any],
    no_fuse: bool,
    as_json: bool,
) -> None:
    inputs = _inputs(native, input_shapes)
    if inputs is None and isinstance(native, torch.nn.Module):
        if calibration is None:
            raise UnsupportedModelError(
                f"{model}: pruning needs the input shapes of a torch module: --input-shapes 'x:[1,3,224,224]', or --calibration"
            )
        inputs = _samples(_first_arrays(calibration), native)
    if output is not None:
        _check_output(native, output, inputs)
    if manifest is not None:
        check_place(manifest)
    fusions = None
    if not no_fuse:
        with status(f"fusing {model}"):
            native, fusions = fuse(native, inputs, return_report=True)
    with status("pruning"), warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneWarning)  # it is printed below
        pruned, report = prune(native, inputs, calibration=calibration, return_report=True, **options)
    if output is not None:
        with status(f"writing {output}"):
            save_model(pruned, output, example_inputs=inputs)
    if manifest is not None:
        report.manifest.save(manifest)
    out = console(as_json)
    if fusions is not None:
        print_fusions(out, fusions, whole=False)
    print_pruning(out, report)
    out.print(f"written: {output}" if output else "nothing written: no -o", markup=False, highlight=False)
    written = {"model": model, "output": str(output) if output else None, "report": json.loads(report.to_json())}
    print_json(as_json, {**written, "fusions": json.loads(fusions.to_json()) if fusions else None})


@app.command("cut", epilog="Example: reparam cut averaged.onnx cut.json -o small-averaged.onnx\n\n" + MODELS)
def cut_command(
    model: Annotated[str, typer.Argument(help="Another checkpoint of the architecture that was pruned.")],
    manifest: Annotated[Path, typer.Argument(help="What `reparam prune --manifest` wrote.")],
    output: Annotated[Path, Output],
    input_shapes: Shapes = None,
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="The pruned model was not fused before.")] = False,
    constant: Constant = False,
    unsafe_load: UnsafeLoad = False,
) -> None:
    """Cut MODEL where another checkpoint of the same architecture was cut; nothing is refitted."""
    with errors_as_exit_codes(False):
        native = _loaded(model, unsafe_load, constant)
        inputs = _inputs(native, input_shapes)
        _check_output(native, output, inputs)
        if not no_fuse:
            native = fuse(native, inputs)
        save_model(apply_manifest(native, manifest, inputs), output, example_inputs=inputs)
        console(False).print(f"written: {output}", markup=False, highlight=False)


def _tvmc(context: typer.Context) -> None:
    raise typer.Exit(tvmc_commands.main([str(context.info_name), *context.args], prog="reparam"))


for _name, _help in (
    ("compile", "Compile MODEL to one file (the command of tvmc)."),
    ("run", "Run an artifact (the command of tvmc)."),
    ("tune", "Search better kernels for MODEL on this machine (the command of tvmc)."),
):
    _words = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": list[str]()}
    app.command(_name, help=_help, context_settings=_words, add_help_option=False)(_tvmc)


def main() -> None:
    """The console script."""
    app(prog_name="reparam")


def run_alone(name: str) -> None:
    """One command as a program of its own: `python -m reparam_compiler.fuse`."""
    alone = typer.Typer(epilog=CODES, **STYLE)
    alone.registered_commands = [command for command in app.registered_commands if command.name == name]
    alone(prog_name=f"python -m reparam_compiler.{name}")


@contextlib.contextmanager
def errors_as_exit_codes(as_json: bool) -> Iterator[None]:
    """An error of the library, or of the file system, becomes one line on stderr and an exit code."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # torch warns of itself
            yield
    except (ReparamError, OSError) as error:
        print_json(as_json, {"error": type(error).__name__, "message": str(error)})
        typer.echo(f"reparam: {type(error).__name__}: {error}", err=True)
        code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
        raise typer.Exit(code) from None


def _first_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz by name, or that of an .npy or of the first .npy in a folder, whose shapes a module is to take.

    Raises:
        UnsupportedModelError: there are none, they are not plain arrays, or they are images.
    """
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not files:
        raise UnsupportedModelError(f"{path}: images take the model's size, and a torch module has none; give --input-shapes")
    if not path.is_dir() and path.suffix not in (".npz", ".npy"):
        raise UnsupportedModelError(f"{path}: found the suffix {path.suffix!r}; expected an .npz, an .npy, or a folder of .npy")
    try:
        with files[0].open("rb") as file:  # numpy leaves one that it cannot read open
            found = np.load(file, allow_pickle=False)
            return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {"": found}
    except UNREADABLE as error:
        raise UnsupportedModelError(f"{path}: it cannot be read as plain arrays: {error}") from error


def _loaded(spec: str, unsafe: bool, constant: bool = False) -> Any:
    """The model that a spec names; one that comes in training mode, as most factories give it, in evaluation mode.

    There is no other use for it here: a norm in training mode is never folded.
    """
    model = opening.open(load_model(spec, unsafe=unsafe), copy=False, weights_are_constant=constant).model
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    if any(module.training for module in modules if type(module) is not torch.nn.Module):  # fx holds children in bare ones
        with contextlib.suppress(NotImplementedError):  # the module of a program, whose mode is that of its export
            model.eval()
            typer.echo(f"reparam: {spec} came in training mode; it is taken in evaluation mode", err=True)
    return model


def _samples(arrays: Mapping[str, np.ndarray[Any, Any]], model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """The first sample of each array, as the inputs of a model: by their names, or in order where none is an input's.

    Floating numbers come in the dtype of the model's weights.
    """
    parameters = signature(model.forward).parameters
    named = [name for name in arrays if name in parameters]
    names = by_position(parameters, named) if named else list(arrays)
    dtypes = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    dtype = next(dtypes, torch.float32)
    samples = (torch.from_numpy(arrays[name][:1].copy()) for name in names)
    return tuple(sample.to(dtype) if sample.is_floating_point() else sample for sample in samples)


def _inputs(model: Any, shapes: str | None) -> tuple[Any, ...] | None:
    return inputs_of_shapes(model, parse_shapes(shapes)) if shapes and shapes.strip() else None


def _inputs_of_either(one: Any, other: Any, shapes: str) -> tuple[Any, ...]:
    """Random inputs of these shapes, which go by the names of the first model's inputs or else of the second's."""
    sizes = parse_shapes(shapes)
    try:
        return inputs_of_shapes(one, sizes)
    except UnsupportedModelError as error:
        with contextlib.suppress(UnsupportedModelError):
            return inputs_of_shapes(other, sizes)
        raise error from None


def _options(policy: str, keep_bn: bool, measure: bool) -> dict[str, Any]:
    """How to fuse: arguments of `fuse` and `inspect`."""
    with status("measuring this machine") if measure else contextlib.nullcontext():
        model = measure_costs() if measure else None
    return {"policy": policy, "keep_bn": keep_bn, "cost_model": model}


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    model = options["cost_model"]
    return {**options, "cost_model": None if model is None else asdict(model)}


def _check_output(model: Any, output: Path, inputs: tuple[Any, ...] | None) -> None:
    check_output(model, output, example_inputs=inputs)
    check_place(output)
