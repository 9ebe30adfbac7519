"""torch's dynamo exporter to ONNX, with one registry of functions for all exports of a process: making it takes a second."""

from functools import cache

from torch.onnx._internal.exporter._registration import ONNXRegistry


@cache
def install() -> None:
    """Makes the exporter use what is here; it only reads the functions, where it is given no others beside them."""
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign,assignment]
