"""All groups of habits, imported: the habits stand in `parts.HABITS` then."""

from tests.habits import arguments, heads, modes, norms, sizes, wiring, within

__all__ = ["arguments", "heads", "modes", "norms", "sizes", "wiring", "within"]
