"""Models by name, kind and file; calibration data."""
