"""Native models in and out: torch.fx, torch.export, ONNX."""
