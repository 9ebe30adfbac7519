"""The options of `tvmc compile | run | tune | measure | tracker | server`: those of TVM 0.19's tvmc, by the same names.

    kept      means what it meant
    without   accepted, and explained on stderr in one line: what it chose is chosen otherwise now, or exists no more
    refused   an error with the reason: to accept it would give the user something else than was asked for

docs/tvmc.md lists them. The parser is argparse, as it was then: options may be abbreviated (`--output` for `--outputs`), and
a machine that only runs artifacts needs nothing but tvm and numpy.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from reparam_compiler.errors import LoweringError
from reparam_compiler.tvmc.fleet import rpc_options, server_options, tracker_options
from reparam_compiler.tvmc.old_options import OF_COMPILE, OF_RUN, OF_TUNE, Refused, Without
from reparam_compiler.tvmc.words import MICRO, names, output_format, positive, seconds, shapes, sizes

LAYOUT_OR_OP = re.compile(r"[A-Z][A-Za-z0-9]*(:[A-Za-z0-9]+)?|default|(nn|qnn|image)\.[\w.]+")
LISTS = ("--desired-layout", "--desired-layout-ops", "--mixed-precision-ops")
"""Options that take several words; the words are told from MODEL by `LAYOUT_OR_OP`."""

TARGET_OPTIONS = {
    "llvm": (
        *(
            "mcpu",
            "mattr",
            "mtriple",
            "num-cores",
            "mfloat-abi",
            "mabi",
            "opt-level",
            "vector-width",
            "jit",
            "cl-opt",
            "fast-math",
        ),
        *("fast-math-nnan", "fast-math-ninf", "fast-math-nsz", "fast-math-arcp", "fast-math-contract", "fast-math-reassoc"),
        *("keys", "libs", "device", "model", "tag"),
    ),
    "cuda": (
        *("arch", "mcpu", "max_shared_memory_per_block", "max_threads_per_block", "thread_warp_size", "registers_per_block"),
        *("l2_cache_size_bytes", "max_num_threads", "keys", "libs", "device", "model", "tag"),
    ),
    "opencl": (
        *("max_threads_per_block", "max_shared_memory_per_block", "max_num_threads", "thread_warp_size", "max_function_args"),
        *("texture_spatial_limit", "texture_depth_limit", "image_base_address_alignment"),
        *("keys", "libs", "device", "model", "tag"),
    ),
}
KINDS = tuple(TARGET_OPTIONS)
OF_BENCHMARK = ("instances", "duration", "warm_up")
"""Options of `run --benchmark`, by the fields of `benchmark.Callers`."""
GONE_FORMATS = {
    "keras": "tf2onnx",
    "pb": "tf2onnx",
    "tflite": "tf2onnx",
    "paddle": "paddle2onnx",
    "relay": "the exporter of what the Relay module came from",
}


def parse(arguments: Sequence[str], prog: str = "tvmc") -> argparse.Namespace:
    """The options of a command line; ends the process with exit code 2 where they are wrong.

    `notes` holds a line for each option that was accepted and has no effect; `target_options` those of `--target-KIND-…`.
    """
    try:
        return _parsed(arguments, prog)
    except _WrongUsage as wrong:
        if "--json" in arguments:
            sys.stdout.write(json.dumps({"error": "UsageError", "message": wrong.message}) + "\n")
        argparse.ArgumentParser.error(wrong.parser, wrong.message)


class _WrongUsage(Exception):
    """A parser's `error`, before it ends the process."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.parser, self.message = parser, message


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _WrongUsage(self, message)


def _parsed(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser, _ = _parsers(prog)
    found, unknown = parser.parse_known_args(list(_joined(arguments)))
    if foreign := [word for word in unknown if word.startswith("--target-")]:
        parser.error(f"{foreign[0]}: targets are of the kinds {', '.join(KINDS)}; of these, see tvmc compile --help")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if given := [name for name in OF_BENCHMARK if getattr(found, name, None) is not None and not found.benchmark]:
        parser.error(f"--{given[0].replace('_', '-')}: found no --benchmark, which it is of; give that too")
    return found


def target_of(found: argparse.Namespace) -> str | dict[str, Any] | None:
    """What `--target` and `--target-KIND-OPTION` mean together, for `lowering.target.resolve`.

    Raises: LoweringError where options are of another kind than the target.
    """
    text: str | None = None if found.target is None else found.target.strip()
    if text is not None and _is_file(text):
        text = _target_file(Path(text))
    options: dict[tuple[str, str], str] = found.target_options
    if (cores := getattr(found, "num_cores", None)) is not None:
        options = {**options, ("llvm", "num-cores"): str(cores)}
    if not options:
        return text
    kind, first = next(iter(options))
    if text is not None and text.startswith("{"):
        try:
            base: dict[str, Any] = dict(json.loads(text))
        except ValueError as refusal:
            raise LoweringError(f"--target: {text!r} is no JSON object: {refusal}") from refusal
        head = str(base.get("kind", kind))
    elif text is None:
        base, head = {"kind": "llvm"}, "llvm"
    else:
        base, head = {}, text.partition(" ")[0]
    if head in KINDS and any(of != head for of, _ in options):
        raise LoweringError(f"--target-{kind}-{first}: found for a target of kind {head}; pass it with --target {kind}")
    if base:
        from reparam_compiler.lowering.target import typed

        return base | {name: typed(name, value) for (_, name), value in options.items()}
    return " ".join([str(text), *(f"-{name}={shlex.quote(value)}" for (_, name), value in options.items())])


def _is_file(text: str) -> bool:
    """Whether a target is the name of a file; JSON, or a long list of attributes, is longer than a name may be."""
    try:
        return not text.startswith("{") and Path(text).is_file()
    except OSError:
        return False


def _target_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as refusal:
        raise LoweringError(f"--target: {path} is no text ({refusal}); expected a target, or a file with one") from refusal


def help_texts() -> dict[str, str]:
    """The help of each command."""
    return {name: command.format_help() for name, command in _parsers("tvmc")[1].items()}


def _parsers(prog: str) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the program, and those of its commands."""
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    epilog = "Example: tvmc compile repvgg.onnx -o module.tar && tvmc run module.tar --print-time"
    parser = _Parser(prog, description="Compile a model with TVM, tune it, run it.", epilog=epilog, **style)
    parser.add_argument("--version", action="store_true", help="print the versions and exit")
    parser.add_argument("--config", action=Refuse, why="defaults from a file are gone; give the options themselves")
    _verbose(parser)
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="compile | run | tune | measure | tracker | server"
    )
    for name, add, help_text, example in (
        ("compile", _compile, "a model to one file", "compile repvgg.onnx --target 'llvm -mcpu=znver3' -o module.tar"),
        ("run", _run, "an artifact, on arrays from a file or on filled ones", "run module.tar --print-time --repeat 20"),
        (
            "tune",
            _tune,
            "search better kernels, on this machine or on devices far away",
            "tune repvgg.onnx --trials 64 -o records, and again to go on",
        ),
        ("measure", _json, "what kernels cost on this machine's CPU, beside what is shipped for it", "measure"),
        (
            "tracker",
            tracker_options,
            "know the devices of a fleet, and lend them to whoever asks",
            "tracker --host 192.168.1.10",
        ),
        (
            "server",
            server_options,
            "lend this machine through a tracker",
            "server --tracker 192.168.1.10:9190 --key pi4 --host 0.0.0.0",
        ),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text, epilog=f"Example: tvmc {example}", **style)
        command.set_defaults(notes=[], target_options={})
        add(command)
        _verbose(command)
    return parser, dict(commands.choices)


def _compile(command: argparse.ArgumentParser) -> None:
    _model(command)
    _target(command)
    command.add_argument("-o", "--output", "--package-path", default="module.tar", help="the artifact (default: module.tar)")
    command.add_argument(
        *("-f", "--output-format"),
        type=output_format,
        metavar="{tar,so}",
        help="tar: an archive; so: one shared library, if --output is not named .tar (default: by the name of --output)",
    )
    command.add_argument("--tuning-records", metavar="PATH", help="the folder that `tvmc tune` wrote")
    command.add_argument("--batches", type=sizes, metavar="LIST", help="compile for these batches, as 1,8, and run any number")
    command.add_argument("--cross-compiler", default="", help="what links the library, such as aarch64-linux-gnu-g++")
    command.add_argument("--cross-compiler-options", default="", help="what else it is given, such as '-mfpu=neon-vfpv4'")
    command.add_argument("--dump-code", default="", metavar="FORMAT", help="write relax, tir, ll, asm, cu, cl beside it")
    command.add_argument("-O", "--opt-level", type=int, choices=range(4), default=3, metavar="[0-3]", help="(default: 3)")
    command.add_argument("--pass-config", action="append", default=[], metavar="name=value", help="a setting of one pass")
    command.add_argument("--disabled-pass", type=names, default=(), metavar="LIST", help="passes to leave out, by comma")
    command.add_argument("--print-pass-times", action="store_true", help="print the time of each pass")
    command.add_argument("--print-ir-before", type=names, default=(), metavar="LIST", help="print the IR before these passes")
    command.add_argument("--print-ir-after", type=names, default=(), metavar="LIST", help="print the IR after these passes")
    command.add_argument(
        "--max-error", type=float, metavar="X", help="relative error that the algorithm of a layer may have (default: 1e-4)"
    )
    command.add_argument(
        "--no-measure", action="store_true", help="take what is shipped for another CPU where none is for this"
    )
    command.add_argument(
        "--no-shipped-records", action="store_true", help="take the rule where nothing is measured, not what is shipped"
    )
    command.add_argument("--report", metavar="FILE", help="also write a page on it: .html, .json or .txt")
    command.add_argument("--no-verify", action="store_true", help="do not compare a run of the result with one of MODEL")
    command.add_argument("--runtime", action=OneOf, others={"crt": MICRO}, default="cpp", help="cpp")
    _old(command, OF_COMPILE)


def _run(command: argparse.ArgumentParser) -> None:
    command.add_argument("PATH", help="an artifact of `tvmc compile`")
    command.add_argument(
        "--device",
        choices=("cpu", "cuda", "opencl", "cl", "metal", "vulkan", "rocm", "micro"),
        help="default: what it was compiled for; which OpenCL device, PYOPENCL_CTX=platform[:device] says",
    )
    command.add_argument(
        "--fill-mode",
        choices=("zeros", "ones", "random"),
        default="random",
        help="inputs that are not given (default: random)",
    )
    command.add_argument("--batch", type=positive, metavar="N", help="samples of filled inputs (default: the smallest batch)")
    command.add_argument("-i", "--inputs", help="an .npz with an array for each input")
    command.add_argument("-o", "--outputs", help="the .npz to write")
    command.add_argument("--print-time", action="store_true", help="measure and print milliseconds of a run")
    command.add_argument("--print-top", type=positive, metavar="N", help="print the N largest values of each output")
    command.add_argument("--profile", action="store_true", help="print the time of each kernel")
    command.add_argument("--end-to-end", action="store_true", help="time the copies of inputs and outputs too")
    command.add_argument("--repeat", type=positive, default=1, metavar="N", help="measurements (default: 1)")
    command.add_argument("--number", type=positive, default=1, metavar="N", help="runs in a row for each (default: 1)")
    command.add_argument("--benchmark", action="store_true", help="measure latency and throughput under load, with percentiles")
    command.add_argument("--instances", type=positive, metavar="N", help="of --benchmark: runs at once (default: 1)")
    command.add_argument("--duration", type=seconds, metavar="S", help="of --benchmark: seconds (default: 3)")
    command.add_argument(
        "--warm-up", type=seconds, metavar="S", help="of --benchmark: seconds before, not counted (default: 0.2)"
    )
    _json(command)
    rpc_options(command)
    _old(command, OF_RUN)


def _tune(command: argparse.ArgumentParser) -> None:
    _model(command)
    _target(command)
    command.add_argument("-o", "--output", required=True, help="the folder of the records; what it holds already counts")
    command.add_argument("--trials", type=positive, default=1000, help="measurements in all (default: 1000)")
    command.add_argument("--repeat", type=positive, default=5, help="measurements of each candidate, cold caches (default: 5)")
    command.add_argument("--number", type=positive, default=1, help="runs in a row for each measurement (default: 1)")
    command.add_argument(
        "--min-repeat-ms", type=positive, default=0, help="milliseconds of a measurement at least (default: 0)"
    )
    command.add_argument("--timeout", type=positive, default=30, help="seconds that one candidate may take (default: 30)")
    command.add_argument("--early-stopping", type=positive, metavar="N", help="end after N measurements without a gain")
    command.add_argument("--max-seconds", type=positive, metavar="S", help="begin no measurement after so many seconds")
    command.add_argument("--parallel", type=positive, metavar="N", help="candidates built at once (default: one a core)")
    command.add_argument("--num-cores", type=positive, metavar="N", help="of the target: the threads of a kernel")
    command.add_argument(
        *("--tuning-records", "--prior-records"), metavar="PATH", help="records of an earlier search to start from"
    )
    command.add_argument("--tasks", type=names, default=("all",), metavar="LIST", help="all, list, or parts of kernels' names")
    command.add_argument("--report", metavar="FILE", help="also write a page on the search: .html, .json or .txt")
    rpc_options(command)
    command.add_argument("--cross-compiler", metavar="CXX", help="what links code for those devices, as aarch64-linux-gnu-g++")
    _old(command, OF_TUNE)


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("MODEL", help="an .onnx, a .pt2, or package.module:factory")
    command.add_argument("--model-format", choices=("onnx", "pytorch", *GONE_FORMATS), help="default: by the name of MODEL")
    command.add_argument(
        "--input-shapes", type=shapes, help="shapes that the model leaves open: '[1,3,224,224]', 'x:[1,3] y:[7]'"
    )
    command.add_argument("--no-fuse", action="store_true", help="do not fuse the branches of MODEL first")
    command.add_argument("--unsafe-load", action="store_true", help="open pickles too: they can run any code")
    _json(command)


def _target(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--target",
        help="llvm, cuda, opencl, 'llvm -mcpu=znver3 -num-cores 2', a tag, JSON, or a JSON file (default: this machine)",
    )
    group = command.add_argument_group("options of the target, the same as inside --target")
    for kind, attributes in TARGET_OPTIONS.items():
        for name in attributes:
            group.add_argument(f"--target-{kind}-{name}", action=OfTarget, key=(kind, name), metavar="VALUE", help="")


def _old(command: argparse.ArgumentParser, options: Iterable[Without | Refused]) -> None:
    group = command.add_argument_group("options of the old tvmc that have no effect now, or cannot be had (docs/tvmc.md)")
    for option in options:
        for flag in option.flags:
            action = Explain if isinstance(option, Without) else Refuse
            shown = option.why if flag == option.flags[0] else ""
            group.add_argument(flag, action=action, nargs=None if option.words else 0, why=option.why, metavar="X", help=shown)


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _verbose(command: argparse.ArgumentParser) -> None:
    command.add_argument("-v", "--verbose", action="count", default=argparse.SUPPRESS, help="say more on stderr")
    command.add_argument(
        *("-q", "--quiet"),
        action="store_const",
        dest="verbose",
        const=-1,
        default=argparse.SUPPRESS,
        help="only errors on stderr",
    )


class Explain(argparse.Action):
    """Accepts an option and notes why it has no effect."""

    def __init__(self, *arguments: Any, why: str, **named: Any) -> None:
        super().__init__(*arguments, **_unset(named))
        self.why = why

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.notes = [*namespace.notes, f"{option} has no effect: {self.why}"]


class Refuse(argparse.Action):
    """Ends the command with the reason why an option is not accepted."""

    def __init__(self, *arguments: Any, why: str, **named: Any) -> None:
        super().__init__(*arguments, **_unset(named))
        self.why = why

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        parser.error(f"{option} is not accepted: {self.why}")


class OneOf(argparse.Action):
    """An option with one value left; the others are refused, each with its reason."""

    def __init__(self, *arguments: Any, others: dict[str, str], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.others = others

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if values != self.default:
            parser.error(f"{option} {values} is not accepted: {self.others.get(values, f'expected {self.default}')}")


class OfTarget(argparse.Action):
    """Collects `--target-KIND-OPTION`."""

    def __init__(self, *arguments: Any, key: tuple[str, str], **named: Any) -> None:
        super().__init__(*arguments, **_unset(named))
        self.key = key

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.target_options = {**namespace.target_options, self.key: values}


def _unset(named: dict[str, Any]) -> dict[str, Any]:
    """No attribute where the option is not used; argparse reads a percent sign in a help text as a format."""
    return {**named, "default": argparse.SUPPRESS, "help": (named.get("help") or "").replace("%", "%%")}


def _joined(arguments: Sequence[str]) -> Iterable[str]:
    """The words of each option of `LISTS` as one word; what does not look like theirs is left, as MODEL may come next."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word in LISTS:
            taken = [words.pop(0)] if words else []
            while words and LAYOUT_OR_OP.fullmatch(words[0]):
                taken.append(words.pop(0))
            yield f"{word}={','.join(taken)}"
        else:
            yield word
