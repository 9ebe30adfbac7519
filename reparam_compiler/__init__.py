"""Fuse, prune, lower: see README.md."""
