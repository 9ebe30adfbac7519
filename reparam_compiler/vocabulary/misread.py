"""What onnx's reference evaluator computes otherwise than ONNX says: nothing is made a constant by it.

Each was measured beside ONNX Runtime, one op in many settings (`benchmarks/op_coverage_onnx.py`), with onnx 1.23; some are in
`findings/`.
"""

_IN_SOME_SETTING = frozenset(
    {
        *("GlobalMaxPool", "GridSample", "LRN", "LpNormalization", "LpPool", "MaxPool", "MaxUnpool", "Resize", "RoiAlign"),
        *("GRU", "LSTM", "RNN"),
    }
)
_BEFORE = {"BatchNormalization": 14, "Dropout": 12, "Hardmax": 13, "LogSoftmax": 13, "Softmax": 13}
"""Ops that it computes as a later opset has them, or trains."""


def is_misread(op_type: str, opset: int) -> bool:
    """Whether the evaluator's value of an op of ONNX's own domain may be another one.

    >>> is_misread("Softmax", 11), is_misread("Softmax", 13), is_misread("LRN", 17)
    (True, False, True)
    """
    return op_type in _IN_SOME_SETTING or opset < _BEFORE.get(op_type, 0)
