"""Tuning, and what it found."""
