"""What is left, refitted."""
