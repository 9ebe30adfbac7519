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

WIDTH, BLOCKS = 512, 60
"""629 MB of weights: torch and ONNX Runtime keep some 300 MB for themselves whatever the model."""

MEASURE = """
import resource, sys
import reparam_compiler
from reparam_compiler.checking import onnx_written
from reparam_compiler.frontends.onnx import frontend, io as onnx_io
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fused, report = reparam_compiler.fuse(sys.argv[1], return_report=True)
onnx_io.save(fused, sys.argv[2])
assert len(report.fusions) == int(sys.argv[3]) and report.max_error.relative < 1e-9
assert report.whole_model.difference.relative < 1e-4, report.whole_model
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def large(path: Path) -> int:
    """Writes blocks of two wide convs, a piece at a time; gives the bytes of their weights."""
    with path.with_suffix(".data").open("wb") as data:
        random = np.random.default_rng(0)
        nodes, tensors = [], []
        for block in range(BLOCKS):
            x, a, b, added = (f"{name}{block}" for name in ("x", "a", "b", "sum"))
            for y, size in ((a, 3), (b, 1)):
                array = random.standard_normal((WIDTH, WIDTH, size, size), np.float32) / np.float32(size * WIDTH**0.5)
                tensors.append(external(f"{y}_w", array, data, path.with_suffix(".data").name))
                nodes.append(helper.make_node("Conv", [x, f"{y}_w"], [y], pads=[size // 2] * 4))
            nodes.append(helper.make_node("Add", [a, b], [added]))
            nodes.append(helper.make_node("Relu", [added], [f"x{block + 1}"]))
        weights = data.tell()
    values = [helper.make_tensor_value_info(name, 1, (1, WIDTH, 6, 5)) for name in ("x0", f"x{BLOCKS}")]
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
        path = Path(folder) / "large.onnx"
        weights = large(path)
        command = [sys.executable, "-c", MEASURE, str(path), str(Path(folder) / "fused.onnx"), str(BLOCKS)]
        taken = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout.split()[-1])
        assert taken < 2 * weights
        assert (Path(folder) / "fused.onnx.data").stat().st_size >= 0.89 * weights
        print(f"{taken / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights")  # noqa: T201 - the figure, with -s
