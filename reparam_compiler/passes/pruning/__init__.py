"""Channels chosen, cut and repaired."""
