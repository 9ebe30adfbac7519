"""Random nets by thousands, fused, pruned and compiled: each must compute what it did, or be refused by a typed error.

    python -m benchmarks.random_nets [--nets 1000] [--first 0] [--compile-every 20] [-o benchmarks/results/random-nets.md]

Nets      `tests/support/random_nets.py`: up to thirty legal layers of odd geometry, with branches, gates and heads; net N is
          the same whenever it is asked for. By turns a module, an exported program, and an ONNX file
fuse      run beside the net in float64 on two images, of which it was given one; an ONNX file in float32
prune     by 0.3; proven in float64 against the net with those channels set to zero, and run
compile   every twentieth net, in float32, beside its own runtime

equal, refused (a typed error), not made (torch exports no such net), not told (its outputs cancel, so that rounding its weights
moves them by as much), wrong (another output) and crashed (any other exception, the end of the process, five minutes).
"""

import argparse
import contextlib
import io
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

import reparam_compiler
from benchmarks import page
from benchmarks.op_coverage import LIMIT, Outcome, outcomes
from reparam_compiler.checking.tolerances import MARGIN
from reparam_compiler.errors import ReparamError, VerificationError
from tests.support.random_nets import random_net

KINDS = ("torch.nn", "torch.export", "onnx")
CLASSES = ("equal", "refused", "not made", "not told", "wrong", "crashed")
RATIO, FLOAT64 = 0.3, 1e-9
"""Of a model in float64, what a fused one may differ by, of its largest output."""
CLOSE = {"float64": FLOAT64, "float32": 1e-4}


@dataclass(frozen=True, slots=True)
class Trial:
    """A verb on one net, in the kind that its number says."""

    number: int
    verb: str

    @property
    def kind(self) -> str:
        return KINDS[self.number % len(KINDS)]

    @property
    def name(self) -> str:
        return f"{self.verb} {self.kind} {self.number}"


class WrongError(Exception):
    """Another output than the net's."""


class UntoldError(Exception):
    """Another output than the net's, by what rounding explains."""


def outcome(trial: Trial) -> Outcome:
    """One verb on one net, in this process."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was not repaired, and the exporter is deprecated
        found, words = _became(trial)
    return Outcome(trial.name, found, words, round(time.process_time() - start, 2))


def _became(trial: Trial) -> tuple[str, str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # an exporter prints what it refuses
            model, x = made(trial)
    except Exception as error:  # noqa: BLE001 - an exporter's
        return "not made", f"{type(error).__name__}: {error}"
    try:
        VERBS[trial.verb](model, x)
    except (VerificationError, WrongError) as error:
        return "wrong", str(error)
    except UntoldError as error:
        return "not told", str(error)
    except ReparamError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - whatever else is raised is what is looked for
        return "crashed", f"{type(error).__name__}: {error}"
    return "equal", ""


def made(trial: Trial) -> tuple[Any, torch.Tensor]:
    """The net in its kind, and an image: in float64, but for ONNX files and what is to be compiled."""
    net, x = random_net(trial.number)
    if trial.kind == "onnx" or trial.verb == "compile":
        net, x = net.float(), x.float()
    if trial.kind == "torch.export":
        return torch.export.export(net, (x,)), x
    if trial.kind == "onnx":
        buffer = io.BytesIO()
        torch.onnx.export(net, (x,), buffer, dynamo=False, opset_version=17)
        return onnx.load_from_string(buffer.getvalue()), x
    return net, x


def _fused(model: Any, x: torch.Tensor) -> None:
    result = reparam_compiler.fuse(model, (x,))
    dtype = str(x.dtype).removeprefix("torch.")
    _same(model, result, x, CLOSE[dtype])


def _same(model: Any, result: Any, x: torch.Tensor, tolerance: float) -> None:
    found = reparam_compiler.equivalent(model, result, (x,), tolerance=tolerance)
    if not found:
        rounding = reparam_compiler.equivalent(model, result, (x,)).rounding
        raise (UntoldError if rounding is not None and found.relative <= MARGIN * rounding else WrongError)(str(found))


def _pruned(model: Any, x: torch.Tensor) -> None:
    result = reparam_compiler.prune(model, (x,), ratio=RATIO, round_to=1)
    _same(result, result, x, 0.0)  # it runs, and gives numbers


def _compiled(model: Any, x: torch.Tensor) -> None:
    reparam_compiler.compile(model, (x,))


VERBS: dict[str, Callable[[Any, torch.Tensor], None]] = {"fuse": _fused, "prune": _pruned, "compile": _compiled}


def trials(first: int, nets: int, compile_every: int) -> Iterator[Trial]:
    """Net by net."""
    for number in range(first, first + nets):
        yield Trial(number, "fuse")
        yield Trial(number, "prune")
        if number // len(KINDS) % compile_every == 0:
            yield Trial(number, "compile")


def text(found: Sequence[Outcome]) -> str:
    """Counts by verb and kind; what is wrong or crashed; how often each thing was refused."""
    lines = [f"| verb | kind | nets | {' | '.join(CLASSES)} |", "|---" * (len(CLASSES) + 3) + "|"]
    for verb in VERBS:
        for kind in KINDS:
            counts = Counter(one.found for one in found if one.name.startswith(f"{verb} {kind} "))
            cells = " | ".join(str(counts[name]) for name in CLASSES)
            lines.append(f"| {verb} | {kind} | {counts.total()} | {cells} |")
    for name in ("wrong", "crashed"):
        lines += ["", f"## {name}", "", *(f"- {one.name}: {_line(one.words)}" for one in found if one.found == name)]
    refused = Counter(one.words.partition(":")[0] for one in found if one.found == "refused")
    lines += ["", "## refused", "", *(f"- {name}: {count}" for name, count in refused.most_common())]
    return "\n".join(lines) + "\n"


def _line(words: str) -> str:
    return " ".join(words.split())[:300]


def main(words: Sequence[str] | None = None) -> None:
    """Prints each net that is neither equal nor refused, and the counts; writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--nets", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--compile-every", type=int, default=20, metavar="N")
    options = parser.parse_args(words)
    found: list[Outcome] = []
    asked = list(trials(options.first, options.nets, options.compile_every))
    with contextlib.suppress(KeyboardInterrupt):  # the page says how many there were
        for one in outcomes(asked, LIMIT, outcome):
            found.append(one)
            if one.found in ("wrong", "crashed"):
                print(f"{one.name}: {one.found}: {_line(one.words)}", flush=True)
    body = f"{len(found)} of {len(asked)} runs of a verb.\n\n{text(found)}"
    print(body)
    if options.output:
        named = f"--nets {options.nets} --first {options.first} --compile-every {options.compile_every}"
        packages = page.versions("torch", "onnx", "onnxruntime", "apache-tvm")
        about = page.facts(f"python -m benchmarks.random_nets {named}", cpu=page.processor(), versions=packages)
        rows = [{**asdict(one), "words": _line(one.words)} for one in found if one.found != "equal"]
        page.write(options.output, page.head("Random nets through every verb", about) + body, {**about, "not equal": rows})


if __name__ == "__main__":
    main()
