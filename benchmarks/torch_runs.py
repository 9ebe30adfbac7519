"""A torch model as something that runs, in ONNX Runtime or compiled by us, in the process of a benchmark."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import reparam_compiler
from benchmarks.sessions import session
from reparam_compiler.frontends.torch.tensors import deep_copy

Run = Callable[[], np.ndarray]


def onnx_runtime(model: nn.Module, x: torch.Tensor, threads: int = 1) -> Run:
    """By way of the TorchScript exporter, which leaves the graph as it is."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that exporter is deprecated
        torch.onnx.export(deep_copy(model), (x,), buffer, dynamo=False)
    loaded = session(buffer.getvalue(), threads)
    feed = {loaded.get_inputs()[0].name: x.numpy()}
    return lambda: np.asarray(loaded.run(None, feed)[0])


def compiled(model: nn.Module, x: torch.Tensor, threads: int = 1, *, shipped_records: bool = True) -> Run:
    """As it is, not fused. shipped_records: with those of this CPU, where there are any."""
    options = reparam_compiler.CompileOptions(shipped_records=shipped_records)
    executable = reparam_compiler.compile(model, (x,), target=f"llvm -num-cores {threads}", fuse=False, options=options)
    array = x.numpy()
    return lambda: executable.run(array)[0]
