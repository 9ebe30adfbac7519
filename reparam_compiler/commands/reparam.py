"""`reparam fuse | prune | inspect | equivalent | compile | run | tune | measure | records | completion`.

Also as `python -m reparam_compiler`.

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
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer

from reparam_compiler.api.comparing import equivalent
from reparam_compiler.api.fusing import fuse, inspect
from reparam_compiler.api.pruning import apply_manifest, prune
from reparam_compiler.commands import completion, records
from reparam_compiler.commands.failing import CODES, DIFFERENT, NOTHING_FUSED, JsonCommand, errors_as_exit_codes
from reparam_compiler.commands.loading import first_arrays, loaded, samples
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
    Quiet,
    Shapes,
    UnsafeLoad,
    Verbose,
    numbers,
    one_of,
)
from reparam_compiler.commands.printing import console, print_equivalence, print_fusions, print_json, print_pruning, status
from reparam_compiler.commands.stating import Stated, inputs_of_either, stated_inputs
from reparam_compiler.core.files import check_place
from reparam_compiler.cost.measure import measure_costs
from reparam_compiler.errors import PruneWarning, UnsupportedModelError
from reparam_compiler.models.calibration import check_path
from reparam_compiler.models.io import check_installed, check_output, save_model
from reparam_compiler.tvmc import commands as tvmc_commands
from reparam_compiler.tvmc.options import help_texts

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


def _print_versions(asked: bool) -> None:
    if asked:
        typer.echo(tvmc_commands.versions())
        raise typer.Exit


@app.callback()
def all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_versions, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """What stands before the name of a command."""


@app.command(
    "fuse",
    cls=JsonCommand,
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
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Make one conv of every block of parallel conv-BN branches, fold the conv-BN pairs that remain, and prove each."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        native = loaded(model, unsafe_load, constant)
        stated = stated_inputs(native, input_shapes)
        _check_output(native, output, stated.inputs)
        options = _options(policy, keep_bn, measure)
        with status(f"fusing {model}"):
            fused, report = fuse(native, stated.inputs, verify=not no_verify, return_report=True, **options)
        out = console(as_json)
        print_fusions(out, report)
        record = {"model": model, "options": _as_json(options), "report": json.loads(report.to_json())}
        if not report.fusions:
            _say_that_nothing_fused(model, output, record, as_json)
        with status(f"writing {output}"):
            save_model(fused, output, example_inputs=stated.inputs, open_sizes=stated.open_sizes)
        out.print(f"written: {output}", markup=False, highlight=False)
        print_json(as_json, {**record, "output": str(output)})


def _say_that_nothing_fused(model: str, output: Path, record: dict[str, Any], as_json: bool) -> NoReturn:
    """Ends the command: a file under the name of a fused model, which is none, would be taken for one."""
    why = "for the reasons that are listed" if record["report"]["refusals"] else "it has no branches or norms that could be"
    said = f"{model}: nothing was fused ({why}), and {output} was not written: the model can be used as it is"
    print_json(as_json, {**record, "output": None, "error": "NothingFused", "message": said})
    typer.echo(f"reparam: {said}", err=True)
    raise typer.Exit(NOTHING_FUSED)


@app.command(
    "inspect",
    cls=JsonCommand,
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
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Show what would fuse, what would not and why, and the cost before and after; nothing is written."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        native = loaded(model, unsafe_load, constant)
        inputs = stated_inputs(native, input_shapes).inputs
        options = _options(policy, keep_bn, measure)
        with status(f"reading {model}"):
            report = inspect(native, inputs, **options)
        print_fusions(console(as_json), report)
        print_json(as_json, {"model": model, "options": _as_json(options), "report": json.loads(report.to_json())})


@app.command(
    "equivalent",
    cls=JsonCommand,
    epilog="Example: reparam equivalent net.pt2 package.module:deployed --input-shapes 'x:[1,3,224,224]'\n\n" + MODELS,
)
def equivalent_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, as below.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, of any kind.", show_default=False)],
    input_shapes: Annotated[
        str,
        typer.Option(
            "--input-shapes",
            help="What both take: 'x:[1,3,224,224]', by the names of either.",
            show_default=False,
        ),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(help="The largest relative difference. Without: what the rounding of the weights does.", min=0.0),
    ] = None,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Say whether two models compute the same but for rounding: exit code 0 where they do, 7 where not."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        one, other = (loaded(spec, unsafe_load) for spec in (a, b))
        inputs = inputs_of_either(one, other, input_shapes)
        with status("comparing"):
            found = equivalent(one, other, inputs, tolerance=tolerance)
        print_equivalence(console(as_json), found)
        print_json(as_json, {"a": a, "b": b, "equivalence": json.loads(found.to_json())})
        if not found:
            raise typer.Exit(DIFFERENT)


@app.command(
    "prune",
    cls=JsonCommand,
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
        if latency is not None:
            check_installed("--latency", "onnx", "onnxruntime")
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
            model, loaded(model, unsafe_load, constant), output, manifest, calibration, input_shapes, options, no_fuse, as_json
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
    if calibration is not None:
        check_path(calibration)
    stated = stated_inputs(native, input_shapes)
    if stated.inputs is None and isinstance(native, torch.nn.Module):
        if calibration is None:
            raise UnsupportedModelError(
                f"{model}: pruning needs the input shapes of a torch module: --input-shapes 'x:[1,3,224,224]', or --calibration"
            )
        stated = Stated(samples(first_arrays(calibration), native))
    inputs = stated.inputs
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
            save_model(pruned, output, example_inputs=inputs, open_sizes=stated.open_sizes)
    if manifest is not None:
        report.manifest.save(manifest)
    out = console(as_json)
    if fusions is not None:
        print_fusions(out, fusions, whole=False)
    print_pruning(out, report)
    out.print(f"written: {output}" if output else "nothing written: no -o", markup=False, highlight=False)
    written = {"model": model, "output": str(output) if output else None, "report": json.loads(report.to_json())}
    print_json(as_json, {**written, "fusions": json.loads(fusions.to_json()) if fusions else None})


@app.command("cut", cls=JsonCommand, epilog="Example: reparam cut averaged.onnx cut.json -o small-averaged.onnx\n\n" + MODELS)
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
        native = loaded(model, unsafe_load, constant)
        stated = stated_inputs(native, input_shapes)
        _check_output(native, output, stated.inputs)
        if not no_fuse:
            native = fuse(native, stated.inputs)
        cut = apply_manifest(native, manifest, stated.inputs)
        save_model(cut, output, example_inputs=stated.inputs, open_sizes=stated.open_sizes)
        console(as_json).print(f"written: {output}", markup=False, highlight=False)
        print_json(as_json, {"model": model, "manifest": str(manifest), "output": str(output)})


def _tvmc(context: typer.Context) -> None:
    raise typer.Exit(tvmc_commands.main([str(context.info_name), *context.args], prog="reparam"))


for _name, _help in (
    ("compile", "Compile MODEL to one file (the command of tvmc)."),
    ("run", "Run an artifact (the command of tvmc)."),
    ("tune", "Search better kernels for MODEL on this machine (the command of tvmc)."),
    ("measure", "Measure what kernels cost on this machine's CPU (the command of tvmc)."),
):
    _words = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": list[str]()}
    app.command(_name, help=_help, context_settings=_words, add_help_option=False)(_tvmc)


app.add_typer(records.app, name="records")


@app.command("completion", epilog='Example, in ~/.bashrc: eval "$(reparam completion bash)"')
def completion_command(
    shell: Annotated[str, typer.Argument(help="Whose completion: bash or zsh.", **one_of(completion.SHELLS))],
) -> None:
    """Print a script that completes the commands and options of reparam and tvmc."""
    of_tvmc = completion.of_help(help_texts())
    of_reparam = completion.of_group(typer.main.get_group(app)) | {name: words for name, words in of_tvmc.items() if name}
    typer.echo(completion.script(shell, {"reparam": of_reparam, "tvmc": of_tvmc}))


def main() -> None:
    """The console script."""
    app(prog_name="reparam")


def run_alone(name: str) -> None:
    """One command as a program of its own: `python -m reparam_compiler.fuse`."""
    alone = typer.Typer(epilog=CODES, **STYLE)
    alone.registered_commands = [command for command in app.registered_commands if command.name == name]
    alone(prog_name=f"python -m reparam_compiler.{name}")


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
