"""Large models stay in their file: what fusing one takes, measured in a process of its own."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

WIDTH, BLOCKS = 512, 30
"""315 MB of weights: more than what is read into memory (`io.IN_MEMORY`)."""

MEASURE = """
import resource, sys
import reparam_compiler
from reparam_compiler.checking import onnx_written
from reparam_compiler.frontends.onnx import frontend, io as onnx_io
reparam_compiler.fuse(sys.argv[1])  # a small model: torch and ONNX Runtime keep some 300 MB for themselves, whatever the model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fused, report = reparam_compiler.fuse(sys.argv[2], return_report=True)
onnx_io.save(fused, sys.argv[3])
assert len(report.fusions) == int(sys.argv[4]) and report.max_error.relative < 1e-9
assert report.whole_model.difference.relative < 1e-4, report.whole_model
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def model(path: Path, width: int, blocks: int) -> int:
    """Writes blocks of two wide convs, a piece at a time; gives the bytes of their weights."""
    with path.with_suffix(".data").open("wb") as data:
        random = np.random.default_rng(0)
        drawn = {size: random.standard_normal((width, width, size, size), np.float32) for size in (3, 1)}
        nodes, tensors = [], []
        for block in range(blocks):
            x, a, b, added = (f"{name}{block}" for name in ("x", "a", "b", "sum"))
            for y, size in ((a, 3), (b, 1)):
                array = np.roll(drawn[size], block, axis=0) / np.float32(size * width**0.5)
                tensors.append(external(f"{y}_w", array, data, path.with_suffix(".data").name))
                nodes.append(helper.make_node("Conv", [x, f"{y}_w"], [y], pads=[size // 2] * 4))
            nodes.append(helper.make_node("Add", [a, b], [added]))
            nodes.append(helper.make_node("Relu", [added], [f"x{block + 1}"]))
        weights = data.tell()
    values = [helper.make_tensor_value_info(name, 1, (1, width, 6, 5)) for name in ("x0", f"x{blocks}")]
    graph = helper.make_graph(nodes, "large", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weights


def external(name: str, array: np.ndarray, data: BinaryIO, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", data.tell()), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    data.write(array.tobytes())
    return tensor


@pytest.mark.slow
def test_fusing_a_large_model_takes_less_than_twice_its_weights() -> None:
    with tempfile.TemporaryDirectory() as folder:
        small, path, fused = (Path(folder) / f"{name}.onnx" for name in ("small", "large", "fused"))
        model(small, 8, 2)
        weights = model(path, WIDTH, BLOCKS)
        command = [sys.executable, "-c", MEASURE, *map(str, (small, path, fused, BLOCKS))]
        taken = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout.split()[-1])
        assert taken < 2 * weights
        assert fused.with_suffix(".onnx.data").stat().st_size >= 0.89 * weights
        print(f"{taken / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights")  # noqa: T201 - the figure, with -s
