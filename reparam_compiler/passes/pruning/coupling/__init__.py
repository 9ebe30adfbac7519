"""Which channels are cut together."""
