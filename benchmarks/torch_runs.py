"""A torch model as something that runs, in ONNX Runtime or compiled by us, in the process of a benchmark."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from torch import nn

import reparam_compiler
from reparam_compiler.frontends.torch.tensors import deep_copy

Run = Callable[[], np.ndarray]


def onnx_runtime(model: nn.Module, x: torch.Tensor, threads: int = 1) -> Run:
    """By way of the TorchScript exporter, which leaves the graph as it is."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that exporter is deprecated
        torch.onnx.export(deep_copy(model), (x,), buffer, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: np.asarray(session.run(None, feed)[0])


def compiled(model: nn.Module, x: torch.Tensor) -> Run:
    """As it is, not fused; TVM_NUM_THREADS says how many threads."""
    executable = reparam_compiler.compile(model, (x,), fuse=False)
    array = x.numpy()
    return lambda: executable.run(array)[0]
