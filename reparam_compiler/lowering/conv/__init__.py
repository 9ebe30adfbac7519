"""Which algorithm a conv takes, and how exact it is."""
