"""A model in ONNX Runtime on the CPU, with so many threads."""

from typing import Any

import onnxruntime


def session(model: bytes | str, threads: int = 1) -> Any:
    """An inference session for a serialized model or a file's path; one operator runs at a time, on `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
