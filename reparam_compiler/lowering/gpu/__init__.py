"""Kernels for GPUs, and the kinds of target that run them: `cuda`, `opencl`."""
