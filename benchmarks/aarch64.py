"""Candidates compiled for aarch64 and measured on a board far away, which qemu plays: each is right, and so is what wins.

    python -m benchmarks.aarch64 [--root FOLDER] [--trials 24] [--images 64] [-o benchmarks/results/aarch64.md]

Board     aarch64 Python and TVM under qemu's user mode, a `tvmc server` at a `tvmc tracker` (`aarch64_board`); FOLDER keeps it
Search    `reparam_compiler.tune` for the board by tracker and key: the digits net, ops without a recipe
Checked   each candidate beside the rule's kernels, there; the tuned net by `tvmc run` there, beside torch or ONNX Runtime here

qemu translates instructions: what it takes for one says nothing of a board, so no time stands on the page. It ends with 1 where
a net computes something else, or another share of the digits is read right.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import reparam_compiler
from benchmarks import aarch64_board, page
from benchmarks.op_one_onnx import normal
from reparam_compiler import Rpc
from reparam_compiler.lowering.search.records import read_convs
from reparam_compiler.tvmc.commands import main as tvmc
from reparam_compiler.zoo.digits import accuracy, digits_repvgg, digits_split
from tests.support.onnx_models import model_of

TARGET = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76 -num-cores 1"
TOLERANCE = 1e-4
"""Of the largest output, in float32."""
PATIENCE = 300.0
"""Seconds of a candidate: qemu takes some to translate what it has not seen."""


@dataclass(frozen=True, slots=True, eq=False)
class Net:
    """What is tuned. expected: of `x`, on this machine. share: of the trials."""

    name: str
    model: Any
    x: np.ndarray
    expected: np.ndarray
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one. kernels: of its tasks, those that were measured. failures: of candidates, by what is said of them.

    error: of what `tvmc run` gave, of the largest output.
    """

    net: str
    kernels: int
    candidates: int
    failures: dict[str, int]
    error: float

    @property
    def right(self) -> bool:
        return self.error <= TOLERANCE


def digits() -> Net:
    """The trained digits net."""
    model, x = digits_repvgg(), digits_split().test_images[:1].copy()
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    fused = reparam_compiler.fuse(model, (torch.from_numpy(x),))
    return Net("digits net", torch.export.export(fused, (torch.from_numpy(x),)), x, expected)


def without_recipes() -> Net:
    """A net whose time is in a pooling and a softmax."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"]),
        onnx.helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4),
        onnx.helper.make_node("Softmax", ["b"], ["y"], axis=1),
    ]
    model, x = model_of(nodes, {"x": (1, 8, 28, 28)}, ["y"], {"w": normal(16, 8, 1, 1)}), normal(1, 8, 28, 28)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    return Net("a pooling and a softmax", model, x, expected, share=2.0)


def searched(net: Net, rpc: Rpc, trials: int, work: Path) -> Found:
    """A net tuned on the board, compiled with what won, and run there. work: an empty folder."""
    records, artifact, given, out = work / "records", work / "net.tar", work / "x.npz", work / "y.npz"
    asked: dict[str, Any] = {"database": records, "target": TARGET, "trials": round(trials * net.share)}
    result = reparam_compiler.tune(net.model, rpc=rpc, repeat=2, timeout=PATIENCE, **asked)
    compiled = reparam_compiler.compile(net.model, target=TARGET, database=records)
    compiled.save(artifact, compiler=rpc.compiler)
    np.savez(given, **{compiled.inputs[0].name: net.x})
    device = ("--rpc-tracker", rpc.tracker, "--rpc-key", rpc.key)
    if code := tvmc(["run", str(artifact), "--inputs", str(given), "--outputs", str(out), *device]):
        raise SystemExit(f"{net.name}: tvmc run ended with {code}")
    found = np.load(out)["output_0"]
    failures = Counter(record.failure for record in read_convs(records) if record.where == "alone" and record.failure)
    if others := result.failed - failures.total():
        failures["of MetaSchedule's, built or run without success"] = others
    error = float(np.abs(found - net.expected).max() / np.abs(net.expected).max())
    return Found(net.name, sum(task.trials > 0 for task in result.tasks), result.measured, dict(failures), error)


def digits_there(rpc: Rpc, artifact: Path, images: int) -> float:
    """The share of so many held-out digits that the board reads right."""
    there, split = reparam_compiler.load(artifact, rpc=rpc), digits_split()
    return accuracy(lambda x: there.run(x)[0], split.test_images[:images], split.test_labels[:images], batch_size=1)


def written(found: Sequence[Found], read: tuple[int, float, float]) -> str:
    """The body of the page. read: of how many digits the board read what share right, and torch."""
    lines = ["| net | kernels searched | candidates sent | right | failed | error of `tvmc run` |", "|---|---|---|---|---|---|"]
    for each in found:
        failed = sum(each.failures.values())
        cells = each.net, each.kernels, each.candidates, each.candidates - failed, failed, f"{each.error:.1e}"
        lines.append(f"| {' | '.join(map(str, cells))} |")
    images, there, here = read
    lines += [
        "",
        f"Of {images} held-out digits the tuned net reads {there:.1%} right there, torch the training form {here:.1%}.",
    ]
    lines += [f"- {count} x {failure}" for each in found for failure, count in each.failures.items()]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Make the board, search on it, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where the board's system is, or is to be; a temporary folder by default")
    parser.add_argument("--trials", type=int, default=24, help="of a net")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args(words)
    if lacking := aarch64_board.missing():
        raise SystemExit(f"this machine lacks {lacking}; expected Debian's packages of these names")
    with tempfile.TemporaryDirectory(prefix="aarch64-") as temporary:
        work = Path(temporary)
        root = (arguments.root or work / "root").resolve()
        with aarch64_board.offered(root) as tracker:
            rpc = Rpc(tracker, aarch64_board.KEY, compiler=aarch64_board.COMPILER)
            found = list[Found]()
            for number, net in enumerate([digits(), without_recipes()]):
                (folder := work / str(number)).mkdir()
                found.append(searched(net, rpc, arguments.trials, folder))
                print(found[-1], flush=True)
            there = digits_there(rpc, work / "0" / "net.tar", arguments.images)
        board = aarch64_board.machine(root)
    split, model = digits_split(), digits_repvgg()
    with torch.no_grad():
        here = accuracy(
            lambda x: model(torch.from_numpy(x)).numpy(),
            *(each[: arguments.images].copy() for each in (split.test_images, split.test_labels)),
        )
    text = written(found, (arguments.images, there, here))
    print(text)
    if arguments.output:
        about = page.facts(
            f"python -m benchmarks.aarch64 --trials {arguments.trials} --images {arguments.images} -o {arguments.output}",
            board=f"{board}, {aarch64_board.emulator_version()}, on {page.processor()}",
            target=TARGET,
            versions=page.versions("apache-tvm", "apache-tvm-ffi", "numpy"),
        )
        record = {"about": about, "nets": [asdict(each) for each in found], "digits": {"there": there, "torch": here}}
        remark = "qemu translates instructions: its times are no board's, and none is given"
        page.write(arguments.output, page.head("Candidates for aarch64, run under qemu", about, remark) + text, record)
    return int(not all(each.right for each in found) or there != here)


if __name__ == "__main__":
    sys.exit(main())
