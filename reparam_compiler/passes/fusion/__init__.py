"""Regions of linear ops, fused into convs."""
