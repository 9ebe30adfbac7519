"""A page on what was done to a model: pure data first (`page`), then HTML, a terminal, and JSON with a schema."""
