"""What runs, is saved and is profiled."""
