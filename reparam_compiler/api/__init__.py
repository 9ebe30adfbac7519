"""The public functions: a model is opened, a pipeline run, the result written, checked and reported."""
