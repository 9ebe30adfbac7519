"""Pure arithmetic on convolution operators: arrays in, arrays out; no graph, no I/O, no logging."""
