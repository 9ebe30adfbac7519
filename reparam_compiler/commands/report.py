"""`reparam report`, and what `--report` writes beside another command's result."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reparam_compiler.commands.failing import errors_as_exit_codes
from reparam_compiler.commands.options import MODELS, Constant, Json, Model, Policy, Quiet, Shapes, UnsafeLoad, Verbose
from reparam_compiler.commands.printing import console, print_json, print_written, status

if TYPE_CHECKING:
    from reparam_compiler.api.report import FuseReport, PruneReport
    from reparam_compiler.reporting.page import Page

EXAMPLES = (
    "Example: reparam report repvgg.onnx -o repvgg.html\n\n"
    "Example: reparam report net.pt2 --after small.pt2 --input-shapes 'x:[1,3,224,224]' -o small.html\n\n" + MODELS
)


def report_command(
    model: Model,
    after: Annotated[str | None, typer.Option(help="What became of MODEL; without: what `fuse` makes of it.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write: .html, .json or .txt; without: printed.", show_default=False),
    ] = None,
    input_shapes: Shapes = None,
    policy: Policy = "cost",
    constant: Constant = False,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Show what becomes of MODEL: both graphs side by side, what was fused by which rule, what was not and why, its layers."""
    with errors_as_exit_codes(as_json, verbose, quiet):
        from reparam_compiler.reporting.writing import check_report

        check_report(output)
        with status(f"reading {model}"):
            if after is None:
                page = _fused_page(model, input_shapes, policy, constant, unsafe_load)
            else:
                page = _compared_page(model, after, input_shapes, constant, unsafe_load)
        show(page, output, as_json)


def write_fused(path: Path | None, model: str, done: "FuseReport") -> None:
    """Writes the page of what `fuse` did to a model, where that was asked for."""
    if path is not None:
        from reparam_compiler.reporting.gather import page_of_fusing, provenance_here, title_of

        _write(page_of_fusing(title_of(model), done, provenance_here(model)), path)


def write_pruned(path: Path | None, model: str, done: "PruneReport", fused: "FuseReport | None") -> None:
    """Writes the page of what `prune` did to a model, and `fuse` before it, where that was asked for."""
    if path is not None:
        from reparam_compiler.reporting.gather import page_of_pruning, provenance_here, title_of

        _write(page_of_pruning(title_of(model), done, fused, provenance_here(model)), path)


def show(page: "Page", output: Path | None, as_json: bool) -> None:
    """Writes a page where that was asked for, prints it otherwise."""
    from reparam_compiler.reporting.schema import to_json
    from reparam_compiler.reporting.terminal import print_page

    out = console(as_json)
    if output is None:
        print_page(out, page)
    else:
        _write(page, output)
        print_written(out, (output,))
    if as_json:
        print_json(as_json, json.loads(to_json(page)))


def _write(page: "Page", path: Path) -> None:
    from reparam_compiler.reporting.writing import write_page

    with status(f"writing {path}"):
        write_page(page, path)


def _fused_page(model: str, shapes: str | None, policy: str, constant: bool, unsafe: bool) -> "Page":
    from reparam_compiler.api.fusing import fuse
    from reparam_compiler.commands.loading import loaded
    from reparam_compiler.commands.stating import stated_inputs
    from reparam_compiler.reporting.gather import page_of_fusing, provenance_here, title_of

    native = loaded(model, unsafe, constant)
    inputs = stated_inputs(native, shapes).inputs
    options: dict[str, Any] = {"policy": policy, "weights_are_constant": constant}
    _, report = fuse(native, inputs, return_report=True, **options)
    return page_of_fusing(
        title_of(model), report, provenance_here(model, graph=report.graphs.before if report.graphs else None)
    )


def _compared_page(model: str, after: str, shapes: str | None, constant: bool, unsafe: bool) -> "Page":
    from reparam_compiler.api.comparing import equivalent
    from reparam_compiler.commands.loading import loaded
    from reparam_compiler.commands.stating import inputs_of_either
    from reparam_compiler.models.opening import open
    from reparam_compiler.reporting.gather import page_of_models, provenance_here, title_of

    one, other = (loaded(spec, unsafe, constant) for spec in (model, after))
    inputs = inputs_of_either(one, other, shapes) if shapes else None
    sources = [open(native, inputs, copy=False) for native in (one, other)]
    kinds = " and ".join(dict.fromkeys(source.frontend.name for source in sources))
    before, changed = (source.graph for source in sources)
    page = page_of_models(f"{title_of(model)} → {title_of(after)}", kinds, before, changed, provenance_here(model, after))
    said = tuple(equivalent(one, other, inputs).to_text().splitlines()) if inputs is not None else ()
    return replace(page, accuracy=said or ("not compared: give --input-shapes",))
