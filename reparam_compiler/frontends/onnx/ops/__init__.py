"""What the ops of ONNX mean in `ir.ops`."""
