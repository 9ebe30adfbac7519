"""NVIDIA's GPUs: what CUDA alone has, cubins and graphs."""
