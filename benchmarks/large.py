"""ONNX files that are large: of many bytes, and of many nodes. Seconds and the most memory of the commands on them.

    python -m benchmarks.large [--only NAME …] [-o benchmarks/results/large.md]

Both are made here, with random weights: blocks of a 3x3 conv and a 1x1 conv, a norm behind each, their sum and a ReLU.

heavy   62 blocks of 1,024 channels, 2.6 GB of weights in a second file
long    2,667 blocks of 8 channels, 16,002 nodes

Each command is a process of its own. Memory is the most that it held (Linux's `ru_maxrss`), the libraries' own 0.4 GB included;
seconds are those of the CPU, on one thread.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper

from benchmarks import page

COMMANDS = {
    "inspect": "inspect {net}",
    "fuse": "fuse {net} -o {out}/fused.onnx",
    "fuse --no-verify": "fuse {net} --no-verify -o {out}/fused.onnx",
    "prune --no-fuse": "prune --ratio 0.3 --round-to 1 --no-fuse {out}/fused.onnx -o {out}/small.onnx",
}
"""In this order: what is pruned is the fused model."""
SIZE = 4
"""Height and width of the input."""


@dataclass(frozen=True, slots=True)
class Net:
    """A net of so many blocks of so many channels."""

    name: str
    blocks: int
    channels: int

    @property
    def nodes(self) -> int:
        return 6 * self.blocks

    @property
    def bytes(self) -> int:
        """Of the weights of its convs."""
        return 4 * 10 * self.channels**2 * self.blocks


NETS = (Net("heavy", 62, 1024), Net("long", 2667, 8))


@dataclass(frozen=True, slots=True)
class Held:
    """Of one command on one net: CPU seconds, the most bytes that it held, its exit code."""

    net: str
    command: str
    seconds: float
    bytes: int
    code: int


def write(net: Net, folder: Path) -> Path:
    """The net as a file, its weights beside it, written one by one."""
    random = np.random.default_rng(0)
    path = folder / f"{net.name}.onnx"
    nodes, weights, width = list[onnx.NodeProto](), list[TensorProto](), net.channels
    with path.with_suffix(".data").open("wb") as data:

        def stored(name: str, array: np.ndarray) -> str:
            weight = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
            weight.raw_data = b"\0"  # what is to lie elsewhere must be there first
            external_data_helper.set_external_data(weight, path.with_suffix(".data").name, data.tell(), array.nbytes)
            weight.ClearField("raw_data")
            data.write(array.astype("float32").tobytes())
            weights.append(weight)
            return name

        def conv_and_norm(x: str, to: str, kernel: int) -> str:
            scale = 0.5 / (kernel * width**0.5)
            drawn = random.standard_normal((width, width, kernel, kernel), dtype="float32") * np.float32(scale)
            inputs = [x, stored(f"{to}_w", drawn)]
            nodes.append(helper.make_node("Conv", inputs, [f"{to}_c"], pads=[kernel // 2] * 4))
            norm = [stored(f"{to}_{part}", random.uniform(0.5, 1.5, width).astype("float32")) for part in "gbmv"]
            nodes.append(helper.make_node("BatchNormalization", [f"{to}_c", *norm], [to]))
            return to

        x = "x"
        for block in range(net.blocks):
            branches = [conv_and_norm(x, f"b{block}_{kernel}", kernel) for kernel in (3, 1)]
            nodes.append(helper.make_node("Add", branches, [f"b{block}_sum"]))
            x = "y" if block == net.blocks - 1 else f"b{block}"
            nodes.append(helper.make_node("Relu", [f"b{block}_sum"], [x]))
    shape = [1, width, SIZE, SIZE]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", "y")]
    graph = helper.make_graph(nodes, net.name, *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def measure(net: Net, command: str, path: Path) -> Held:
    """Runs one command."""
    words = COMMANDS[command].format(net=path, out=path.parent).split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "reparam_compiler", *words, "-q"], env=environment)
    _, status, used = os.wait4(process.pid, 0)
    return Held(net.name, command, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss, os.waitstatus_to_exitcode(status))


def table(found: Sequence[Held]) -> str:
    """A row for each command on each net."""
    nets = {net.name: net for net in NETS}
    lines = ["| model | nodes | weights (GB) | command | CPU s | most memory (GB) | over the weights |", "|---" * 7 + "|"]
    for each in found:
        net = nets[each.net]
        cells = [net.name, f"{net.nodes:,}", f"{net.bytes / 1e9:.2f}", each.command, f"{each.seconds:.0f}"]
        ratio = f"{each.bytes / net.bytes:.2f}x" if net.bytes > 1e9 else ""
        end = [f"{each.bytes / 1e9:.2f}", ratio] if not each.code else [f"ended with {each.code}", ""]
        lines.append(f"| {' | '.join([*cells, *end])} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[net.name for net in NETS], default=[net.name for net in NETS])
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args(words)
    found = list[Held]()
    for net in (net for net in NETS if net.name in arguments.only):
        with tempfile.TemporaryDirectory(prefix="large-") as folder:
            path = write(net, Path(folder))
            for command in COMMANDS:
                found.append(measure(net, command, path))
                print(found[-1], flush=True)
    print(table(found))
    if arguments.output:
        command = f"python -m benchmarks.large --only {' '.join(arguments.only)} -o {arguments.output}"
        about = page.facts(
            command, cpu=f"{page.processor()}, one thread", versions=page.versions("torch", "numpy", "onnxruntime")
        )
        page.write(
            arguments.output, page.head("Large files", about) + table(found), {**about, "rows": list(map(asdict, found))}
        )


if __name__ == "__main__":
    main()
