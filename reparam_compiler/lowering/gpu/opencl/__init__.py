"""Any OpenCL device: kernels as OpenCL C, which its driver compiles, launched by a program of our own."""
