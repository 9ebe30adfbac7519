"""`tvmc compile | tune | run`: a model file to an artifact, better tiles for it, and numbers out of it.

    tvmc compile repvgg.onnx --target "llvm -mcpu=znver3 -num-cores 2" -o module.tar
    tvmc tune repvgg.onnx --trials 64 -o records
    tvmc compile repvgg.onnx --tuning-records records -o module.tar
    tvmc run module.tar --inputs cat.npz --outputs scores.npz --print-time --print-top 5

The option names are those of the tvmc that TVM had until 0.19. Outputs are written whole or not at all. Exit codes:
0 done, 2 a wrong option, 3 the model cannot be read, 4 it cannot be lowered or run, 5 tvm is missing, 1 anything else.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from reparam_compiler.errors import LoweringError, ReparamError, TvmMissingError, UnsupportedModelError

if TYPE_CHECKING:
    from reparam_compiler.lowering import Executable, Timing

app = typer.Typer(
    name="tvmc",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Compile a model with TVM, tune it, run it.",
    epilog="Example: tvmc compile repvgg.onnx -o module.tar && tvmc run module.tar --print-time",
)

EXIT_CODES: tuple[tuple[type[ReparamError], int], ...] = (
    (TvmMissingError, 5),
    (LoweringError, 4),
    (UnsupportedModelError, 3),
    (ReparamError, 1),
)
SHAPE = re.compile(r"\s*,?\s*(?P<name>[^\s\[\]]+?)\s*:\s*\[(?P<dims>[^\[\]]*)\]")

Model = Annotated[str, typer.Argument(help="An .onnx, a .pt2, or package.module:factory.", show_default=False)]
Target = Annotated[
    str | None,
    typer.Option(help="llvm, cuda, 'llvm -mcpu=znver3 -num-cores 2', a tag, or JSON. Default: this machine."),
]
InputShapes = Annotated[str | None, typer.Option(help="Shapes that the model leaves open: 'x:[1,3,224,224] mask:[1,10]'.")]
UnsafeLoad = Annotated[bool, typer.Option("--unsafe-load", help="Open pickles too: they can run any code.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command("compile", epilog="Example: tvmc compile repvgg.onnx --target 'llvm -mcpu=znver3' -o module.tar")
def compile_command(
    model: Model,
    target: Target = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact to write.")] = Path("module.tar"),
    input_shapes: InputShapes = None,
    tuning_records: Annotated[Path | None, typer.Option(help="A folder that `tvmc tune` wrote.")] = None,
    output_format: Annotated[str, typer.Option("--output-format", "-f", help="tar: one file, self-describing.")] = "tar",
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
) -> None:
    """Compile MODEL to one file that `tvmc run` and `reparam_compiler.load` run without torch."""

    def work() -> None:
        if output_format != "tar":
            raise typer.BadParameter(f"found {output_format!r}; only 'tar' is written", param_hint="--output-format")
        from reparam_compiler.lowering import compile

        native = _read_model(model, unsafe_load)
        with _status(f"compiling {model}"):
            compiled = compile(native, target=target, database=tuning_records, input_shapes=_shapes(input_shapes))
            compiled.save(output)
        size = output.stat().st_size
        _report(
            as_json,
            {"output": str(output), "bytes": size, **_interface(compiled)},
            lambda console: console.print(_interface_table(compiled, f"{output}  {size / 2**20:.1f} MiB")),
        )

    _guarded(work, as_json)


@app.command("run", epilog="Example: tvmc run module.tar --fill-mode random --print-time --repeat 20")
def run_command(
    file: Annotated[Path, typer.Argument(help="An artifact of `tvmc compile`.", show_default=False)],
    inputs: Annotated[Path | None, typer.Option("--inputs", "-i", help="An .npz with an array for each input.")] = None,
    outputs: Annotated[Path | None, typer.Option("--outputs", "-o", help="The .npz to write the outputs to.")] = None,
    fill_mode: Annotated[str, typer.Option(help="Without --inputs: random, ones or zeros.")] = "random",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: what the artifact was made for.")] = None,
    print_time: Annotated[bool, typer.Option("--print-time", help="Measure and print milliseconds.")] = False,
    print_top: Annotated[int | None, typer.Option(min=1, help="Print the N largest values of each output.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Measurements.")] = 10,
    number: Annotated[int, typer.Option(min=1, help="Runs in a row for each measurement.")] = 1,
    as_json: Json = False,
) -> None:
    """Run an artifact, on arrays from a file or on filled ones; write, print, measure."""

    def work() -> None:
        from reparam_compiler.lowering import load

        compiled = load(file)
        arrays = _arrays(compiled, inputs, fill_mode)
        _check_device(compiled, device)
        results = compiled.run(**arrays)
        named = {spec.name: array for spec, array in zip(compiled.outputs, results, strict=True)}
        if outputs is not None:
            _write_npz(outputs, named)
        timing = compiled.timing(repeat=repeat, number=number, **arrays) if print_time else None
        top = {name: _top(array, print_top) for name, array in named.items()} if print_top else {}
        record: dict[str, Any] = {
            "outputs": [asdict(spec) for spec in compiled.outputs],
            "written": str(outputs) if outputs else None,
            "top": top,
            "time_ms": _milliseconds(timing) if timing else None,
        }
        _report(as_json, record, lambda console: _print_run(console, compiled, record))

    _guarded(work, as_json)


@app.command("tune", epilog="Example: tvmc tune repvgg.onnx --trials 64 -o records, then again to go on")
def tune_command(
    model: Model,
    target: Target = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the records.")] = Path("records"),
    trials: Annotated[int, typer.Option(min=1, help="Measurements in all, those already in the folder included.")] = 256,
    repeat: Annotated[int, typer.Option(min=1, help="Measurements of each candidate.")] = 3,
    number: Annotated[int, typer.Option(min=1, help="Runs in a row for each measurement.")] = 1,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that one candidate may take.")] = 30.0,
    input_shapes: InputShapes = None,
    unsafe_load: UnsafeLoad = False,
    as_json: Json = False,
) -> None:
    """Search better tiles and schedules for MODEL on this machine. Interrupted, it goes on where it was."""

    def work() -> None:
        from reparam_compiler.lowering import tune

        native = _read_model(model, unsafe_load)
        result = tune(
            native,
            target=target,
            trials=trials,
            database=output,
            repeat=repeat,
            number=number,
            timeout=timeout,
            input_shapes=_shapes(input_shapes),
            progress=not as_json,
        )
        table = Table("task", "trials", "best us", title=f"{output}: {result.measured} new of {result.total} records")
        for task in result.tasks:
            table.add_row(task.name, str(task.trials), f"{task.best_seconds * 1e6:.1f}" if task.trials else "-")
        _report(as_json, {"output": str(output), **asdict(result)}, lambda console: console.print(table))

    _guarded(work, as_json)


def main() -> None:
    """The console script."""
    app()


def _read_model(spec: str, unsafe: bool) -> Any:
    from reparam_compiler.model_io import load_model

    return load_model(spec, unsafe=unsafe)


def _shapes(text: str | None) -> dict[str, tuple[int, ...]] | None:
    """{"x": (1, 3)} of "x:[1,3]", the syntax of the old tvmc."""
    if text is None:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    position = 0
    while text[position:].strip(" ,"):
        match = SHAPE.match(text, position)
        sizes = [size.strip() for size in match["dims"].split(",")] if match else []
        if match is None or not all(size.isdigit() and int(size) for size in sizes if size or len(sizes) > 1):
            raise typer.BadParameter(f"cannot read {text!r}; expected 'x:[1,3,224,224]'", param_hint="--input-shapes")
        shapes[match["name"]] = tuple(int(size) for size in sizes if size)
        position = match.end()
    return shapes


def _arrays(compiled: "Executable", inputs: Path | None, fill_mode: str) -> dict[str, Any]:
    from reparam_compiler.lowering.artifact import filled

    if inputs is None:
        return {spec.name: filled(spec, fill_mode) for spec in compiled.inputs}
    if not inputs.is_file():
        raise LoweringError(f"{inputs}: no such file; --inputs takes an .npz with {_names(compiled)}")
    try:
        with np.load(inputs, allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, OSError, EOFError, TypeError) as refusal:
        raise LoweringError(f"{inputs}: not an .npz of plain arrays ({refusal}); it must hold {_names(compiled)}") from None


def _check_device(compiled: "Executable", device: str | None) -> None:
    kind = {"llvm": "cpu", "cuda": "cuda"}[json.loads(compiled.target)["kind"]]
    if device not in (None, kind):
        raise LoweringError(f"--device: found {device!r}; this artifact was compiled for {kind!r}. Compile it again for it")


def _names(compiled: "Executable") -> str:
    return "; ".join(map(str, compiled.inputs))


def _interface(compiled: "Executable") -> dict[str, Any]:
    return {
        "inputs": [asdict(spec) for spec in compiled.inputs],
        "outputs": [asdict(spec) for spec in compiled.outputs],
        "target": json.loads(compiled.target),
        "kernels": [asdict(kernel) for kernel in compiled.kernels],
        "versions": compiled.versions,
    }


def _interface_table(compiled: "Executable", title: str) -> Table:
    table = Table("", "name", "shape", "dtype", title=title, caption=compiled.target, title_justify="left")
    for side, specs in (("in", compiled.inputs), ("out", compiled.outputs)):
        for spec in specs:
            table.add_row(side, spec.name, " ".join(map(str, spec.shape)), spec.dtype)
    return table


def _top(array: Any, count: int) -> list[tuple[int, float]]:
    """The flat indices and values of the `count` largest elements, largest first."""
    flat = np.asarray(array).reshape(-1)
    best = np.argsort(-flat, kind="stable")[:count]
    return [(int(index), float(flat[index])) for index in best]


def _milliseconds(timing: "Timing") -> dict[str, float]:
    values = np.asarray(timing.seconds) * 1e3
    return {
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _print_run(console: Console, compiled: "Executable", record: dict[str, Any]) -> None:
    for spec in compiled.outputs:
        console.print(str(spec), markup=False)
    for name, values in record["top"].items():
        table = Table("index", "value", title=f"largest of {name}")
        for index, value in values:
            table.add_row(str(index), f"{value:.6g}")
        console.print(table)
    if record["time_ms"]:
        table = Table(*record["time_ms"], title="milliseconds of one run")
        table.add_row(*(f"{value:.3f}" for value in record["time_ms"].values()))
        console.print(table)
    if record["written"]:
        console.print(f"written: {record['written']}", markup=False)


def _write_npz(path: Path, arrays: dict[str, Any]) -> None:
    if not path.parent.is_dir():
        raise LoweringError(f"{path}: the folder {path.parent} does not exist; make it first")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".reparam-") as folder:
        whole = Path(folder) / "outputs.npz"
        with whole.open("wb") as file:
            np.savez(file, **arrays)
        whole.replace(path)


def _report(as_json: bool, record: dict[str, Any], show: Callable[[Console], None]) -> None:
    if as_json:
        typer.echo(json.dumps(record))
    else:
        show(Console())


@contextlib.contextmanager
def _status(text: str) -> Iterator[None]:
    """A spinner on stderr while something takes seconds, where stderr is a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        yield


def _guarded(work: Callable[[], None], as_json: bool) -> None:
    """Run a command; an error of the library becomes one line on stderr and the exit code of its class."""
    try:
        work()
    except ReparamError as error:
        if as_json:
            typer.echo(json.dumps({"error": type(error).__name__, "message": str(error)}))
        typer.echo(f"tvmc: {type(error).__name__}: {error}", err=True)
        code = next(code for kind, code in EXIT_CODES if isinstance(error, kind))
        raise typer.Exit(code) from None


if __name__ == "__main__":
    main()
