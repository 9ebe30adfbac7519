"""`reparam records list | export | merge | verify`: what searches measured, looked at, put together, shared and tried again.

reparam records list records/ shipped.jsonl.gz
reparam records merge laptop/ board/ -o records/
reparam records export records/ -o sapphirerapids-512.jsonl.gz
reparam records verify records/ --model repvgg.onnx
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from reparam_compiler.commands.failing import JsonCommand, errors_as_exit_codes
from reparam_compiler.commands.options import Constant, Json, Quiet, Shapes, UnsafeLoad, Verbose
from reparam_compiler.commands.printing import console, print_json, status
from reparam_compiler.core.files import check_place
from reparam_compiler.errors import LoweringError
from reparam_compiler.tvmc.failing import exit_code_of

if TYPE_CHECKING:
    from reparam_compiler.lowering.search.folders import LayerSummary
    from reparam_compiler.lowering.search.verifying import Verification

SLOWER = exit_code_of(LoweringError)
USUAL = {"stride 1x1", "dilation 1x1", "padding 0x0x0x0", "groups 1"}
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="What `tvmc tune -o` wrote.", show_default=False)]

app = typer.Typer(
    help="Show what searches measured, put it together, share it, try it again.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.command("list", cls=JsonCommand, epilog="Example: reparam records list records/")
def list_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="Folders of records, or files of shared ones.", show_default=False)
    ],
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Show by target and layer what was measured, and which point is taken: its time by that of the rule's, and where."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        found = {str(path): _summarised(path) for path in paths}
        for name, (about, layers) in found.items():
            _print_layers(console(as_json), name, about, layers)
        print_json(
            as_json,
            {"paths": [{"path": name, **about, "layers": list(map(_line, layers))} for name, (about, layers) in found.items()]},
        )


@app.command("merge", cls=JsonCommand, epilog="Example: reparam records merge laptop/ board/ -o records/")
def merge_command(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="Folders of records.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that takes them, made where it is not there.")],
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Append to one folder what others hold for whichever target, each line once; no search may run on it meanwhile."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        from reparam_compiler.lowering.search.folders import merge

        merged = merge(folders, output)
        for each in merged:
            _say(console(as_json), f"{each.folder}: {each.new} new, {each.known} that {output} has")
        print_json(as_json, {"output": str(output), "folders": list(map(asdict, merged))})


@app.command("export", cls=JsonCommand, epilog="Example: reparam records export records/ -o sapphirerapids-512.jsonl.gz")
def export_command(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    family: Annotated[
        str | None, typer.Option(help="Of the targets that they serve; where the folder has winners for several.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Write what won in a running net to the small file that others share: of each layer the point, and what it beat."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        check_place(output)
        from reparam_compiler.lowering.search.folders import exported
        from reparam_compiler.lowering.search.shared import write_shared

        shared = exported(folder, family)
        write_shared(output, shared)
        _say(console(as_json), f"written: {output}: {len(shared.records)} layers for {shared.origin.family}")
        print_json(as_json, {"output": str(output), "records": len(shared.records), "origin": asdict(shared.origin)})


@app.command("verify", cls=JsonCommand, epilog="Example: reparam records verify records/ --model repvgg.onnx")
def verify_command(
    folder: Folder,
    model: Annotated[str, typer.Option(help="An .onnx, a .pt2, or package.module:factory.", show_default=False)],
    target: Annotated[str | None, typer.Option(help="As for `tvmc tune`; without: this machine.")] = None,
    input_shapes: Shapes = None,
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="Take the model as it is.")] = False,
    constant: Constant = False,
    unsafe_load: UnsafeLoad = False,
    keep: Annotated[bool, typer.Option("--keep", help="Append what is measured: what lost decides no longer.")] = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Run MODEL by the records and by rule, by turns: exit code 0 where each layer and the net are faster, else 4."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        from reparam_compiler.api.compiling import verify_records
        from reparam_compiler.commands.loading import loaded
        from reparam_compiler.commands.stating import stated_inputs

        native = loaded(model, unsafe_load, constant)
        inputs = stated_inputs(native, input_shapes).inputs
        with status(f"measuring {model}"):
            found = verify_records(native, inputs, database=folder, target=target, fuse=not no_fuse, keep=keep)
        _print_verification(console(as_json), found)
        layers = [{**asdict(layer), "wins": layer.wins} for layer in found.layers]
        times = {"rule_seconds": found.rule_seconds, "net_seconds": found.net_seconds}
        print_json(as_json, {"folder": str(folder), "model": model, "faster": bool(found), "layers": layers, **times})
        if not found:
            raise typer.Exit(SLOWER)


def _summarised(path: Path) -> "tuple[dict[str, Any], list[LayerSummary]]":
    """Where records are from, as far as the path says it, and the layers."""
    from reparam_compiler.lowering.search.folders import of_shared, summaries
    from reparam_compiler.lowering.search.shared import read_shared

    if not path.is_file():
        return {}, summaries(path)
    shared = read_shared(path)
    return {"origin": asdict(shared.origin)}, of_shared(shared)


def _line(layer: "LayerSummary") -> dict[str, Any]:
    from reparam_compiler.lowering.search.records import point_line

    return {**asdict(layer), "best": point_line(layer.best)}


def _print_layers(out: Console, name: str, about: dict[str, Any], layers: "list[LayerSummary]") -> None:
    """A table for each target."""
    _say(out, f"{name}: {len(layers)} layers{'' if not about else ', ' + json.dumps(about['origin'])}")
    for target in dict.fromkeys(layer.target for layer in layers):
        names = ("layer", "points", "failed", "best", "by the rule's", "where", "taken")
        table = Table(*(Column(each, overflow="fold") for each in names), title=target, title_justify="left")
        for layer in layers:
            if layer.target == target:
                taken = {True: "yes", False: "no", None: ""}[layer.decides]
                counts = (str(layer.measurements), str(layer.failed))
                table.add_row(_short(layer.layer), *counts, str(layer.best), f"{layer.ratio:.3f}", layer.where, taken)
        out.print(table)


def _short(layer: str) -> str:
    """Without what most layers have."""
    return ", ".join(part for part in layer.split(", ") if part not in USUAL)


def _print_verification(out: Console, found: "Verification") -> None:
    table = Table(*(Column(each, overflow="fold") for each in ("layer", "point", "by the rule's", "")))
    for layer in found.layers:
        table.add_row(layer.layer, layer.point, f"{layer.ratio:.3f}", "still faster" if layer.wins else "not faster")
    out.print(table)
    _say(out, f"a run: {1e3 * found.net_seconds:.3f} ms with these records, {1e3 * found.rule_seconds:.3f} ms without")


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
