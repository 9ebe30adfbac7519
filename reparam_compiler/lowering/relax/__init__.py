"""Passes on Relax modules."""
