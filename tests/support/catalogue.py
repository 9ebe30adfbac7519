"""Every family of `docs/algebra.md` and of the design's table as a small module, spelled as its authors spell `forward`.

What differs between them is why they are here: how the sum is written, where norms and constants stand, how a border is padded,
which of the tracers takes the block.
"""

from tests.support import catalogue_depthwise, catalogue_general, catalogue_padded, catalogue_repvgg
from tests.support.catalogue_parts import Entry

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for family in (catalogue_repvgg, catalogue_padded, catalogue_depthwise, catalogue_general)
    for entry in family.ENTRIES
}
"""The entries by name."""
