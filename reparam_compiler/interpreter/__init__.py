"""The graph evaluated, and values compared."""
