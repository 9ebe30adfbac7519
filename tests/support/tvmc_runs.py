"""`tvmc` called in this process, and a tiny ONNX model for it."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from reparam_compiler.tvmc.commands import main

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
WEIGHT = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype("float32")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def tvmc(*arguments: object) -> Done:
    """Run `tvmc` with these words."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, stdout.getvalue(), stderr.getvalue())


def expected(x: np.ndarray) -> np.ndarray:
    """What the model of `write_onnx` gives."""
    return np.asarray(torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(WEIGHT)))


def write_onnx(path: Path, batch: int | str, name: str = "x") -> Path:
    """A 3x3 conv without padding, 3 channels to 8, on 8x7 pixels."""
    graph = helper.make_graph(
        [helper.make_node("Conv", [name, "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, 3, 8, 7])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 8, 6, 5])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path
