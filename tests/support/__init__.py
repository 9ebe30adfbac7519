"""Models, data and helpers that tests and benchmarks share."""
