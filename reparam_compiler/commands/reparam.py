"""`reparam fuse | prune | sweep | cut | inspect | report | equivalent | compile | run | tune | measure | records | doctor | …`.

Also as `python -m reparam_compiler`.

    reparam inspect repvgg.onnx
    reparam fuse repvgg.onnx -o fused.onnx --report fused.html
    reparam equivalent repvgg.onnx fused.onnx --input-shapes 'x:[1,3,224,224]'
    reparam prune --ratio 0.3 repvgg.onnx --calibration images.npz -o small.onnx --manifest cut.json
    reparam prune --flops 0.5 repvgg.onnx --calibration images/ --quality high -o small.onnx
    reparam sweep repvgg.onnx --ratios 0.1:0.9 --calibration images.npz --evaluate test.npz -o sweep.html
    reparam cut other.onnx cut.json -o small-other.onnx
    reparam compile small.onnx -o module.tar

An error of the library is one line on stderr and the exit code of its class. Outputs are written whole or not at all.
A command imports what it works with when it runs: torch takes seconds to load, and help is there at once.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from reparam_compiler.commands import completion, doctor, pruning, records, report, sweeping
from reparam_compiler.commands.failing import CODES, DIFFERENT, NOTHING_FUSED, Commands, JsonCommand, errors_as_exit_codes
from reparam_compiler.commands.options import (
    MODELS,
    Constant,
    Json,
    KeepBn,
    MeasureCosts,
    Model,
    Output,
    Policy,
    Quiet,
    Report,
    Shapes,
    UnsafeLoad,
    Verbose,
    one_of,
)
from reparam_compiler.commands.printing import console, print_equivalence, print_fusions, print_json, print_written, status
from reparam_compiler.core.files import temporary_files_removed

STYLE: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
}

app = typer.Typer(
    name="reparam",
    cls=Commands,
    help="Fuse the branches of a ConvNet into plain convs, prune its channels, compile it with TVM.",
    epilog=f"Example: reparam fuse repvgg.onnx -o fused.onnx\n\n{MODELS}\n\n{CODES}",
    **STYLE,
)


def _print_versions(asked: bool) -> None:
    if asked:
        from reparam_compiler.tvmc.commands import versions

        typer.echo(versions())
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
    report_file: Report = None,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Make one conv of every block of parallel conv-BN branches, fold the conv-BN pairs that remain, and prove each."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        from reparam_compiler.api.fusing import fuse
        from reparam_compiler.commands.loading import check_output_for, loaded
        from reparam_compiler.commands.stating import stated_inputs
        from reparam_compiler.models.io import save_model
        from reparam_compiler.reporting.writing import check_report

        native = loaded(model, unsafe_load, constant)
        stated = stated_inputs(native, input_shapes)
        check_output_for(native, output, stated.inputs)
        check_report(report_file)
        options = _options(policy, keep_bn, measure)
        with status(f"fusing {model}"):
            fused, done = fuse(native, stated.inputs, verify=not no_verify, return_report=True, **options)
        if done.fusions:
            with status(f"writing {output}"):
                files = save_model(fused, output, example_inputs=stated.inputs, open_sizes=stated.open_sizes)
        report.write_fused(report_file, model, done)
        out = console(as_json)
        print_fusions(out, done)
        record = {"model": model, "options": _as_json(options), "report": json.loads(done.to_json())}
        if not done.fusions:
            _say_that_nothing_fused(model, output, record, as_json)
        print_written(out, files)
        print_json(as_json, {**record, "output": str(output), "files": list(map(str, files))})


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
        from reparam_compiler.api.fusing import inspect
        from reparam_compiler.commands.loading import loaded
        from reparam_compiler.commands.stating import stated_inputs

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
        from reparam_compiler.api.comparing import equivalent
        from reparam_compiler.commands.loading import loaded
        from reparam_compiler.commands.stating import inputs_of_either

        one, other = (loaded(spec, unsafe_load) for spec in (a, b))
        inputs = inputs_of_either(one, other, input_shapes)
        with status("comparing"):
            found = equivalent(one, other, inputs, tolerance=tolerance)
        print_equivalence(console(as_json), found)
        print_json(as_json, {"a": a, "b": b, "equivalence": json.loads(found.to_json())})
        if not found:
            raise typer.Exit(DIFFERENT)


app.command("report", cls=JsonCommand, epilog=report.EXAMPLES)(report.report_command)
app.command("prune", cls=JsonCommand, epilog=pruning.PRUNE_EXAMPLES)(pruning.prune_command)
app.command("sweep", cls=JsonCommand, epilog=sweeping.EXAMPLES)(sweeping.sweep_command)
app.command("cut", cls=JsonCommand, epilog=pruning.CUT_EXAMPLE)(pruning.cut_command)


def _tvmc(context: typer.Context) -> None:
    from reparam_compiler.tvmc.commands import main

    raise typer.Exit(main([str(context.info_name), *context.args], prog="reparam"))


for _name, _help in (
    ("compile", "Compile MODEL to one file (the command of tvmc)."),
    ("run", "Run an artifact (the command of tvmc)."),
    ("tune", "Search better kernels for MODEL on this machine (the command of tvmc)."),
    ("measure", "Measure what kernels cost on this machine's CPU (the command of tvmc)."),
):
    _words = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": list[str]()}
    app.command(_name, help=_help, context_settings=_words, add_help_option=False)(_tvmc)


app.add_typer(records.app, name="records")
app.command("doctor", cls=JsonCommand, epilog=doctor.EXAMPLE)(doctor.doctor_command)


@app.command("completion", epilog='Example, in ~/.bashrc: eval "$(reparam completion bash)"')
def completion_command(
    shell: Annotated[str, typer.Argument(help="Whose completion: bash or zsh.", **one_of(completion.SHELLS))],
) -> None:
    """Print a script that completes the commands and options of reparam and tvmc."""
    from reparam_compiler.tvmc.options import help_texts

    of_tvmc = completion.of_help(help_texts())
    of_reparam = completion.of_group(typer.main.get_group(app)) | {name: words for name, words in of_tvmc.items() if name}
    typer.echo(completion.script(shell, {"reparam": of_reparam, "tvmc": of_tvmc}))


def main() -> None:
    """The console script."""
    with temporary_files_removed():
        app(prog_name="reparam")


def run_alone(name: str) -> None:
    """One command as a program of its own: `python -m reparam_compiler.fuse`."""
    alone = typer.Typer(epilog=CODES, **STYLE)
    alone.registered_commands = [command for command in app.registered_commands if command.name == name]
    with temporary_files_removed():
        alone(prog_name=f"python -m reparam_compiler.{name}")


def _options(policy: str, keep_bn: bool, measure: bool) -> dict[str, Any]:
    """How to fuse: arguments of `fuse` and `inspect`."""
    model = None
    if measure:
        from reparam_compiler.cost.measure import measure_costs

        with status("measuring this machine"):
            model = measure_costs()
    return {"policy": policy, "keep_bn": keep_bn, "cost_model": model}


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    model = options["cost_model"]
    return {**options, "cost_model": None if model is None else asdict(model)}
