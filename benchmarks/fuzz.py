"""Files that mean harm, by ten thousands: each is read and put through every verb, or refused by a typed error.

    python -m benchmarks.fuzz [--inputs 20000] [--seed 0] [--coverage SECONDS] [-o benchmarks/results/fuzz.md]

Files     `tests/support/fuzz_trials.py`: ONNX models, PT2 programs, artifacts, records, manifests, calibration data; each is
          valid, and then made wrong in one way and now and then in further ones. Input N is the same whenever it is asked for
verbs     load, inspect, fuse, prune and save of models; load of an artifact but for its code; list of records; apply_manifest

worked     where the mutation is one of numbers, the fused model is also run beside the model in ONNX's reference evaluator
refused    a typed error with words
fault      any other exception, another output, a pickle that ran, the end of the process, ten seconds of CPU, 6 GiB

`--coverage` then lets atheris look for bytes that reach new lines.
"""

import argparse
import contextlib
import os
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from benchmarks import page
from benchmarks.op_coverage import Outcome, outcomes
from tests.support.fuzz_trials import SUBJECTS, Trial
from tests.support.fuzz_trials import outcome as tried

LIMIT = 400.0
"""Seconds for one input: its CPU time is what counts, and others may use the machine."""
MEMORY = 6 << 30
"""Bytes that a process may take beyond what it has when it starts."""
CLASSES = ("worked", "refused", "fault")


def outcome(trial: Trial) -> Outcome:
    """One input in this process, which has so much memory and says nothing."""
    _confine()
    found = tried(trial)
    return Outcome(found.name, found.found, found.words, found.seconds)


@cache
def _confine() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # ONNX Runtime writes each refusal there, from C++
    os.dup2(nothing, 2)


def run(inputs: int, seed: int) -> Iterator[Outcome]:
    """So many inputs, from one on; what ended its process is a fault."""
    for one in outcomes([Trial(number) for number in range(seed, seed + inputs)], LIMIT, outcome):
        yield one if one.found in CLASSES else Outcome(one.name, "fault", one.words, one.seconds)


def text(found: Sequence[Outcome]) -> str:
    """Counts by file and mutation, the errors that refused, and every fault."""
    rows = [one.name.split(", ") for one in found]
    lines = [f"| file | mutation | inputs | {' | '.join(CLASSES)} |", "|---" * (len(CLASSES) + 3) + "|"]
    for subject, kind in SUBJECTS.items():
        whole = Counter(one.found for one, row in zip(found, rows, strict=True) if row[0] == subject)
        lines.append(f"| **{subject}** | all | {_cells(whole)} |")
        for mutation in kind.mutations:
            counts = Counter(one.found for one, row in zip(found, rows, strict=True) if row[:2] == [subject, mutation])
            lines += [f"| {subject} | {mutation} | {_cells(counts)} |"] if counts else []
    lines.append(f"| **all** | | {_cells(Counter(one.found for one in found))} |")
    refused = Counter(one.words.partition(":")[0] for one in found if one.found == "refused")
    lines += ["", "## refused by", "", *(f"- {name}: {count}" for name, count in refused.most_common())]
    lines += ["", "## faults", "", *(f"- {one.name}: {_line(one.words)}" for one in found if one.found == "fault")]
    return "\n".join(lines) + "\n"


def _cells(counts: Counter[str]) -> str:
    return " | ".join(map(str, (counts.total(), *(counts[name] for name in CLASSES))))


def _line(words: str) -> str:
    return " ".join(words.split())[:300]


def main(words: Sequence[str] | None = None) -> int:
    """Prints each fault and the counts, and writes page and JSON where asked; ends with 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first input")
    parser.add_argument("--coverage", type=int, default=0, metavar="SECONDS", help="of atheris, behind it")
    options = parser.parse_args(words)
    found = []
    with contextlib.suppress(KeyboardInterrupt):  # the page says how many there were
        for one in run(options.inputs, options.seed):
            found.append(one)
            if one.found == "fault":
                print(f"{one.name}: {_line(one.words)}", flush=True)
    body = f"{len(found)} inputs, from number {options.seed} on.\n\n{text(found)}"
    if options.coverage:
        from benchmarks.fuzz_coverage import covered

        body += f"\n## by coverage\n\n{covered(options.coverage)}\n"
    print(body)
    if options.output:
        named = f"--inputs {options.inputs} --seed {options.seed} --coverage {options.coverage}"
        packages = page.versions("torch", "onnx", "onnxruntime", "protobuf")
        about = page.facts(f"python -m benchmarks.fuzz {named}", cpu=page.processor(), versions=packages)
        faults = [asdict(one) for one in found if one.found == "fault"]
        page.write(
            options.output, page.head("Files that mean harm", about) + body, {**about, "inputs": len(found), "faults": faults}
        )
    return int(any(one.found == "fault" for one in found))


if __name__ == "__main__":
    raise SystemExit(main())
