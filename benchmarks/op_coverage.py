"""One-op models by hundreds, each compiled and compared with its own runtime: what is computed right, and what is refused.

    python -m benchmarks.op_coverage [--route torch|onnx] [--only PATTERN …] [-o benchmarks/results/op-coverage.md]

Each model is compiled for this machine with `verify=True`, in a process of its own kind: one process takes model after model,
and where it dies or hangs, that model has crashed and the next process goes on behind it.

equal          the compiled model gives what the model gives in torch or ONNX Runtime
refused        a typed error before anything is computed; the page lists what it says
not compared   it is compiled, but its own runtime does not run it, or two runs of it differ
wrong          it is compiled, and the comparison raised VerificationError: for another machine nothing would have said so
crashed        any other exception, or the end of the process
"""

import argparse
import importlib
import logging
import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

import reparam_compiler
from benchmarks import page
from benchmarks.op_models import OneOp
from reparam_compiler.errors import ReparamError, VerificationError

ROUTES = {"torch": "benchmarks.op_coverage_torch", "onnx": "benchmarks.op_coverage_onnx"}
"""Where each route's `models()` stands."""
CLASSES = ("equal", "refused", "not compared", "wrong", "crashed")
LIMIT = 300.0
"""Seconds for one model, without those in which both processes are stopped."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a model: one of CLASSES, and what was said. seconds: of CPU, of export, compiling and comparing."""

    name: str
    found: str
    words: str
    seconds: float


def outcome(model: OneOp) -> Outcome:
    """One model, made, compiled and compared in this process."""
    torch.manual_seed(0)
    np.random.seed(0)
    start = time.process_time()
    found, words = _compiled(model)
    return Outcome(model.name, found, words, round(time.process_time() - start, 2))


def _compiled(model: OneOp) -> tuple[str, str]:
    try:
        subject, inputs = model.make()
        executable = reparam_compiler.compile(subject, inputs)
    except VerificationError as error:
        return "wrong", str(error)
    except ReparamError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001 - whatever else is raised is what is looked for
        return "crashed", f"{type(error).__name__}: {error}"
    return ("equal" if executable.verified else "not compared"), executable.verification


def outcomes(models: Sequence[Any], limit: float = LIMIT, judge: Callable[[Any], Outcome] = outcome) -> Iterator[Outcome]:
    """Of all models, which have names, in their order; a new process goes on behind one at which the last one ended."""
    fork = multiprocessing.get_context("fork")
    left = list(models)
    while left:
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_work, args=(left, sender, judge))
        process.start()
        sender.close()
        while left:
            start = time.perf_counter()
            try:
                in_time = any(receiver.poll(1.0) for _ in range(round(limit)))
                answer = receiver.recv() if in_time else f"took more than {limit:.0f} s"
            except EOFError:
                answer = "its process died"
            name = left.pop(0).name
            if isinstance(answer, Outcome):
                yield answer
            else:
                yield Outcome(name, "crashed", answer, round(time.perf_counter() - start, 2))
                break
        process.kill()
        process.join()


def _work(models: Sequence[Any], sender: Connection, judge: Callable[[Any], Outcome]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    for model in models:
        sender.send(judge(model))


def models_of(route: str, only: Sequence[str] = ()) -> list[OneOp]:
    """A route's models, or those whose name fits one of the patterns. Raises ValueError where two have one name."""
    models: list[OneOp] = importlib.import_module(ROUTES[route]).models()
    twice = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    if twice:
        raise ValueError(f"{route}: {', '.join(twice)} more than once")
    return [model for model in models if not only or any(fnmatch(model.name, pattern) for pattern in only)]


def counted(found: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """The table of counts, a row a route."""
    lines = [f"| route | models | {' | '.join(CLASSES)} | equal of all |", "|---" * (len(CLASSES) + 3) + "|"]
    for route, all_of_it in found.items():
        counts = Counter(one.found for one in all_of_it)
        cells = " | ".join(str(counts[name]) for name in CLASSES)
        lines.append(f"| {route} | {len(all_of_it)} | {cells} | {counts['equal'] / max(1, len(all_of_it)):.1%} |")
    return lines


def listed(found: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """What is not equal, with what was said of it, by class; and the names of what is."""
    lines = []
    for route, all_of_it in found.items():
        for name in CLASSES[1:]:
            some = [one for one in all_of_it if one.found == name]
            if some:
                lines += ["", f"## {route}: {name}", "", "| model | what is said |", "|---|---|"]
                lines += [f"| {one.name} | {_cell(one.words)} |" for one in some]
        equal = [one.name for one in all_of_it if one.found == "equal"]
        lines += ["", f"## {route}: equal", "", ", ".join(equal)]
    return lines


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")[:400]


def main() -> None:
    """Prints each model that is not equal and the counts, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--route", choices=ROUTES, nargs="+", default=list(ROUTES))
    parser.add_argument("--only", nargs="+", default=[], help="names of models, or patterns such as 'interpolate*'")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found: dict[str, list[Outcome]] = {}
    for route in arguments.route:
        found[route] = []
        for one in outcomes(models_of(route, arguments.only)):
            found[route].append(one)
            if one.found != "equal":
                print(f"{route} {one.name}: {one.found}: {one.words[:400]}", flush=True)
    print("\n".join(counted(found)))
    if arguments.output:
        _write(arguments.output, found)


def _write(output: Path, found: Mapping[str, Sequence[Outcome]]) -> None:
    packages = page.versions("torch", "onnx", "onnxruntime", "apache-tvm")
    about = page.facts(f"python -m benchmarks.op_coverage -o {output}", cpu=page.processor(), versions=packages)
    text = page.head("One-op models, compiled and compared", about) + "\n".join([*counted(found), *listed(found)]) + "\n"
    page.write(output, text, {"about": about, **{route: [asdict(one) for one in some] for route, some in found.items()}})


if __name__ == "__main__":
    main()
