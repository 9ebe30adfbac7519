"""A rewritten trace, put back into the module that it was traced from."""
