"""The records that ship for the family of this machine's CPU: models searched, what won tried again, and exported.

    python -m benchmarks.shipped_records FOLDER [MODEL …] [--cores 1 2] [--seconds 600] [--trials 1000]

MODEL is an ONNX file; without any: RepVGG-A0 to B3g4, A0 pruned by 0.3, the digits net, ResNet-18, -34 and -50. FOLDER has a
folder of records for each number of cores, in which one model's layers teach the search of the next; the same command goes on
where it was. Each net is then run again by its records (`verify_records(keep=True)`), so that what won once by chance has no
part in the file. It is written after every model.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

import reparam_compiler
from reparam_compiler.api.compiling import verify_records
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.search.folders import exported, merge
from reparam_compiler.lowering.search.shared import SHIPPED, SUFFIX, write_shared
from reparam_compiler.zoo import digits_repvgg, randomise_batch_norm, resnet18, resnet34, resnet50
from reparam_compiler.zoo.repvgg import REPVGG

IMAGE, DIGIT = (1, 3, 224, 224), (1, 1, 16, 16)
PRUNED = 0.3


def main(words: Sequence[str] | None = None) -> None:
    """Searches, verifies, and writes the file into the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--cores", nargs="+", type=int, default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--seconds", type=float, default=600, help="of the search of one model on one number of cores")
    parser.add_argument("--trials", type=int, default=1000, help="likewise")
    parser.add_argument("-o", "--output", type=Path, help="default: in the package, by the name of the family")
    found = parser.parse_args(words)
    for name, model, x in files(found.models) if found.models else zoo():
        for cores in found.cores:
            how: dict[str, Any] = {"database": found.folder / str(cores), "target": f"llvm -num-cores {cores}"}
            reparam_compiler.tune(model, x, trials=found.trials, max_seconds=found.seconds, **how)
            print(f"{name} on {cores}: {tried_again(model, x, how)}", flush=True)
        print(written([found.folder / str(cores) for cores in found.cores], found.folder / "all", found.output), flush=True)


def tried_again(model: Any, x: Any, how: dict[str, Any]) -> str:
    """What the net takes by its records and by rule; what loses decides no longer."""
    try:
        again = verify_records(model, x, keep=True, **how)
    except LoweringError as nothing:  # the search found no winner
        return str(nothing)
    losers = [layer.layer for layer in again.layers if not layer.wins]
    return f"{1e3 * again.net_seconds:.2f} ms of {1e3 * again.rule_seconds:.2f}; not faster: {', '.join(losers) or 'none'}"


def written(folders: Sequence[Path], work: Path, output: Path | None) -> str:
    """The file, and how large it is."""
    merge(folders, work)
    try:
        shared = exported(work)
    except LoweringError as nothing:
        return str(nothing)
    SHIPPED.mkdir(exist_ok=True)
    output = output or SHIPPED / f"{shared.origin.family}{SUFFIX}"
    write_shared(output, shared)
    return f"{output.name}: {len(shared.records)} layers, {output.stat().st_size} bytes"


def files(paths: Sequence[Path]) -> Iterator[tuple[str, Any, None]]:
    """ONNX models by the names of their files."""
    for path in paths:
        yield path.stem, onnx.load(path), None


def zoo() -> Iterator[tuple[str, Any, tuple[torch.Tensor, ...]]]:
    """The models of the package, with random statistics, and inputs for them."""
    image = (torch.zeros(IMAGE),)
    pruned = reparam_compiler.prune(
        reparam_compiler.fuse(randomise_batch_norm(REPVGG["A0"]().eval(), 0), image), image, ratio=PRUNED
    )
    yield "A0-pruned", pruned, image
    yield "digits", digits_repvgg(), (torch.zeros(DIGIT),)
    for name, make in {**REPVGG, "resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}.items():
        yield name, randomise_batch_norm(make().eval(), 0), image


if __name__ == "__main__":
    main()
