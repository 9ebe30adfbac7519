"""Models run and compared: what is written is checked against what was given."""
