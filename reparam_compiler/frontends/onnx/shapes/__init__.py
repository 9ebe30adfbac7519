"""The types and shapes of an ONNX graph."""
