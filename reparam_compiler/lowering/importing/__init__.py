"""Models into Relax."""
