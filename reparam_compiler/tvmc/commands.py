"""`tvmc compile | tune | run | measure | tracker | server`: a model file to an artifact, better kernels for it, numbers of it.

    tvmc compile repvgg.onnx --target "llvm -mcpu=znver3 -num-cores 2" -o module.tar
    tvmc tune repvgg.onnx --trials 64 -o records
    tvmc compile repvgg.onnx --tuning-records records -o module.tar
    tvmc run module.tar --inputs cat.npz --outputs scores.npz --print-time --print-top 5
    tvmc measure

Outputs are written whole or not at all. Exit codes: 0 done, 2 a wrong option, 3 the model cannot be read, 4 it cannot be
lowered or run, 5 tvm is missing, 6 and 7 fusing failed, 130 Ctrl-C, 141 a closed pipe, 1 anything else.
"""

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam_compiler.core.files import UNREADABLE, temporary_files_removed
from reparam_compiler.core.packages import installed_version
from reparam_compiler.errors import LoweringError
from reparam_compiler.tvmc import model as api
from reparam_compiler.tvmc.benchmark import Callers
from reparam_compiler.tvmc.failing import ENDS, INTERRUPTED, log, log_lines, report
from reparam_compiler.tvmc.fleet import rpc_of, serve, track
from reparam_compiler.tvmc.options import OF_BENCHMARK, parse, target_of
from reparam_compiler.tvmc.tables import (
    batch_line,
    costs_table,
    interface_table,
    kernel_table,
    memory_line,
    profile_table,
    target_lines,
    top_table,
    tuning_table,
)

if TYPE_CHECKING:
    from reparam_compiler.lowering import CompileOptions, Executable, SearchOptions, TuneResult
    from reparam_compiler.lowering.search.progress import TuneStep

LISTED = ("list",)
"""What `--tasks` is where the kernels are to be listed."""
DUMPED = {"relay": "relax"}
"""What `--dump-code` names otherwise now."""


def main(arguments: Sequence[str] | None = None, prog: str = "tvmc") -> int:
    """The console script; gives the exit code.

    It ends the process itself where an option is wrong, help is asked for, or a search was interrupted.
    """
    if arguments is None:
        with temporary_files_removed():
            return main(sys.argv[1:], prog)
    words = list(arguments)
    try:
        found = _asked(words, prog)
    except ENDS as error:
        return report(error, prog, as_json="--json" in words)
    commands = {"compile": _compile, "run": _run, "tune": _tune, "measure": _measure, "tracker": _track, "server": _serve}
    with log_lines(prog, getattr(found, "verbose", 0)):
        for note in found.notes:
            log.warning(note)
        try:
            commands[found.command](found)
            sys.stdout.flush()
        except ENDS as error:  # whatever it is, it is one line and, where asked for, JSON
            return report(error, prog, as_json=found.json)
    return 0


def _asked(words: Sequence[str], prog: str) -> argparse.Namespace:
    """The options; ends the process where they are wrong, or help or the versions are asked for."""
    try:
        found = parse(words or ["--help"], prog)
        if found.version:
            _say(versions())
            raise SystemExit(0)
        return found if found.command is not None else parse(["--help"], prog)
    finally:
        sys.stdout.flush()  # here: where a pipe is closed, Python would print a traceback in the end


def _check_tvm() -> None:
    """Raises TvmMissingError where it is, before a model is opened."""
    importlib.import_module("reparam_compiler.lowering")


def _compile(found: argparse.Namespace) -> None:
    _check_tvm()
    output = Path(found.output)
    output_format = found.output_format
    if output_format == "so" and output.suffix == ".tar":
        output_format = "tar"
        log.warning(f"{output} is an archive with the library in it, as ever; for the library alone name it .so")
    from reparam_compiler.reporting.writing import check_report, write_page

    options = _options(found)
    check_report(found.report)
    model = _loaded(found)
    package = api.compile(
        model,
        target_of(found),
        found.opt_level,
        tuning_records=found.tuning_records,
        package_path=str(output),
        cross=found.cross_compiler,
        cross_options=found.cross_compiler_options,
        output_format=output_format,
        dump_code=_dumped(found.dump_code),
        batches=found.batches,
        options=options,
        verify=not found.no_verify,
    )
    made, size = package.executable, output.stat().st_size
    if found.report is not None:
        from reparam_compiler.reporting.compiled import page_of_compiling

        write_page(page_of_compiling(made=made, fused=package.fused, **_of_model(found, model)), found.report)
    if found.json:
        _say(json.dumps({"output": str(output), "bytes": size, "listings": dict(made.listings), **_interface(made)}))
        return
    _say_compiled(made, f"{output}  {size / 2**20:.1f} MiB")


def _say_compiled(made: "Executable", head: str) -> None:
    """What was made, for people: listings that were asked for, then `head`, and all that is known of it."""
    for name, text in made.listings.items():
        if name.startswith(("before ", "after ", "pass times")):
            _say(f"# {name}\n{text}\n")
    _say(f"{head}\n{interface_table(made)}")
    for variant in made.variants if made.any_batch else ():
        _say(f"\n{batch_line(made, variant)}\n{kernel_table(made.at(variant.batch))}\n")
    if not made.batches:
        _say(kernel_table(made))
    _say("\n".join((memory_line(made), *target_lines(made))))
    _say(f"{'verified' if made.verified else 'not verified'}: {made.verification}")


def _of_model(found: argparse.Namespace, model: api.TVMCModel) -> dict[str, Any]:
    """What a page is told of the model itself: arguments of `page_of_compiling` and `page_of_tuning`."""
    from reparam_compiler.models.stated import inputs_of_shapes
    from reparam_compiler.reporting.gather import provenance_here, title_of

    shapes = model.shapes()
    return {
        "title": title_of(found.MODEL),
        "model": model.native,
        "example_inputs": inputs_of_shapes(model.native, shapes) if shapes else None,
        "provenance": provenance_here(found.MODEL),
    }


def _run(found: argparse.Namespace) -> None:
    executable = _artifact(found)
    result = api.run(
        api.TVMCPackage(found.PATH, executable),
        found.device,
        inputs=read_inputs(executable, found.inputs),
        fill_mode=found.fill_mode,
        batch=found.batch,
        repeat=found.repeat,
        number=found.number,
        benchmark=found.print_time,
        end_to_end=found.end_to_end,
        profile=found.profile,
        callers=Callers(**_given(found, OF_BENCHMARK)) if found.benchmark else None,
    )
    if found.outputs is not None:
        result.save(found.outputs)
    outputs = [replace(spec, shape=result.outputs[spec.name].shape) for spec in executable.outputs]
    top = {name: _top(array, found.print_top) for name, array in result.outputs.items()} if found.print_top else {}
    if found.json:
        record: dict[str, Any] = {
            "target": json.loads(executable.target),
            "outputs": [asdict(spec) for spec in outputs],
            "written": found.outputs,
            "top": top,
            "time_ms": result.statistics() or None,
            "profile": asdict(result.profile) if result.profile is not None else None,
            "benchmark": result.benchmark.record() if result.benchmark is not None else None,
        }
        _say(json.dumps(record))
        return
    if executable.others:
        _say(f"of code for {len(executable.targets)} targets that for {executable.target}")
    for spec in outputs:
        _say(str(spec))
    for name, values in top.items():
        _say(f"\nlargest of {name}\n{top_table(values)}")
    _say_measured(result)
    if found.outputs is not None:
        _say(f"written: {found.outputs}")


def _given(found: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those options that are given."""
    return {name: value for name in names if (value := getattr(found, name)) is not None}


def _say_measured(result: api.TVMCResult) -> None:
    """What was measured of a run, each in a paragraph."""
    if result.profile is not None:
        _say(f"\n{profile_table(result.profile)}")
    if result.times:
        _say(f"\n{result.format_times()}")
    if result.benchmark is not None:
        _say(f"\n{result.benchmark}")


def _artifact(found: argparse.Namespace) -> "Executable":
    """What is to be run; files that are named and not there are found before tvm is imported."""
    from reparam_compiler.lowering import load

    if found.benchmark and found.rpc_tracker is not None:
        raise LoweringError(
            "--benchmark: found --rpc-tracker; callers here would measure the network. --print-time goes by the device's clock"
        )
    if found.outputs is not None:
        api.check_folder(Path(found.outputs))
    if found.inputs is not None and not Path(found.inputs).is_file():
        what = f"an .npz with an array for each input of {found.PATH}"
        raise LoweringError(f"{found.inputs}: no such file; --inputs takes {what}")
    with _without_torch():
        return load(found.PATH, rpc=rpc_of(found))


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Imports of this block find no torch, where it is not loaded yet: tvm imports it if it can, which takes seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def _tune(found: argparse.Namespace) -> None:
    _check_tvm()
    from reparam_compiler.reporting.writing import check_report, write_page

    check_report(found.report)
    model = _loaded(found)
    steps: "list[TuneStep]" = []

    def heard(step: "TuneStep") -> None:
        steps.append(step)
        if found.json and found.tasks != LISTED:
            _say(json.dumps(asdict(step)))

    result, fused = api.measured(
        model,
        target_of(found),
        found.output,
        found.tuning_records,
        _search_options(found),
        rpc=rpc_of(found),
        progress=not found.json,
        listener=heard,
    )
    _say(json.dumps({"output": found.output, **asdict(result)}) if found.json else _found_by(result, found.output))
    if result.interrupted:
        log.error("ended by Ctrl-C; the same command goes on from here")
    if found.report is not None:
        from reparam_compiler.reporting.tuned import page_of_tuning

        write_page(page_of_tuning(result=result, steps=steps, fused=fused, **_of_model(found, model)), found.report)
    if result.interrupted:
        raise SystemExit(INTERRUPTED)


def _search_options(found: argparse.Namespace) -> "SearchOptions":
    """Of a search; of one that measures nothing where the kernels are to be listed."""
    from reparam_compiler.lowering import SearchOptions

    listed = found.tasks == LISTED
    return SearchOptions(
        trials=0 if listed else found.trials,
        tasks=() if listed else tuple(task for task in found.tasks if task != "all"),
        early_stopping=found.early_stopping,
        max_seconds=found.max_seconds,
        repeat=found.repeat,
        number=found.number,
        min_repeat_ms=found.min_repeat_ms,
        timeout=found.timeout,
        parallel=found.parallel,
    )


def _found_by(result: "TuneResult", folder: str) -> str:
    lines = [f"{folder}: {result.measured} new of {result.total} records", tuning_table(result)]
    if result.failed:
        lines.append(f"{result.failed} candidates failed; the folder says why")
    if result.rule_seconds is not None and result.net_seconds is not None:
        lines.append(f"a run: {1e3 * result.net_seconds:.3f} ms with these records, {1e3 * result.rule_seconds:.3f} ms without")
    return "\n".join(lines)


def _track(found: argparse.Namespace) -> None:
    with _without_torch():
        track(found)


def _serve(found: argparse.Namespace) -> None:
    with _without_torch():
        serve(found)


def _measure(found: argparse.Namespace) -> None:
    from reparam_compiler.lowering import measure_cpu
    from reparam_compiler.lowering.cpu.machine import native_family

    ours, known = measure_cpu(), native_family()
    if found.json:
        _say(json.dumps({"measured": asdict(ours), known.origin: asdict(known)}))
        return
    shipped = known.origin == "shipped"
    _say(f"{'/'.join(ours.cpus)}\n{costs_table(ours, known)}")
    _say(f"`compile` takes those {'that are shipped' if shipped else 'measured here, which are kept'}")


def _loaded(found: argparse.Namespace) -> api.TVMCModel:
    """The model that the words name, in evaluation mode: in training mode it could be neither fused nor compiled."""
    from reparam_compiler.models.io import into_evaluation_mode

    model = api.load(found.MODEL, found.model_format, found.input_shapes, fuse=not found.no_fuse, unsafe=found.unsafe_load)
    if into_evaluation_mode(model.native):
        log.warning("%s came in training mode; it is taken in evaluation mode", found.MODEL)
    return model


def _options(found: argparse.Namespace) -> "CompileOptions":
    from reparam_compiler.lowering import CompileOptions

    config = {}
    for word in found.pass_config:
        name, equals, value = word.partition("=")
        if not equals:
            raise LoweringError(f"--pass-config: found {word!r}; expected name=value")
        config[name] = value
    bound = {} if found.max_error is None else {"max_error": found.max_error}
    return CompileOptions(
        **bound,
        pass_config=config,
        disabled_passes=found.disabled_pass,
        before=found.print_ir_before,
        after=found.print_ir_after,
        pass_times=found.print_pass_times,
        measure=not found.no_measure,
        shipped_records=not found.no_shipped_records,
    )


def _dumped(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in DUMPED.keys() & set(names):
        log.warning(f"--dump-code {name}: TVM has no {name} any more; {DUMPED[name]} is written")
    return [DUMPED.get(name, name) for name in names]


def read_inputs(executable: "Executable", path: str | None) -> dict[str, Any]:
    """The arrays of an .npz, by name; none without a path. Raises LoweringError where it cannot be read."""
    if path is None:
        return {}
    import numpy as np

    expected = "; ".join(map(str, executable.inputs))
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:  # numpy leaves a broken one open
            return dict(archive)
    except UNREADABLE as refusal:
        raise LoweringError(f"{path}: not an .npz of plain arrays ({refusal}); it must hold {expected}") from None


def _interface(made: "Executable") -> dict[str, Any]:
    return {
        "inputs": [asdict(spec) for spec in made.inputs],
        "outputs": [asdict(spec) for spec in made.outputs],
        "target": json.loads(made.target),
        "targets": [json.loads(target) for target in made.targets],
        "chosen_by": {variant.target: variant.chosen_by for variant in (*made.variants, *made.others)},
        "kernels": [asdict(kernel) for kernel in made.kernels],
        "by_batch": {batch: [asdict(kernel) for kernel in made.at(batch).kernels] for batch in made.batches},
        "memory": asdict(made.memory) if made.memory else None,
        "versions": made.versions,
        "verified": made.verified,
        "verification": made.verification,
    }


def _top(array: Any, count: int) -> list[tuple[int, float]]:
    """The flat indices and values of the `count` largest elements, largest first."""
    import numpy as np

    flat = np.asarray(array).reshape(-1)
    best = np.argsort(-flat, kind="stable")[:count]
    return [(int(index), float(flat[index])) for index in best]


def versions() -> str:
    """What is installed of the packages that decide what the commands do."""
    names = ("reparam_compiler", "torch", "onnx", "onnxruntime", "apache-tvm")
    return " ".join(f"{name} {installed_version(name) or 'not installed'}" for name in names)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
