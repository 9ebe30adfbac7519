"""What is noted on a PrimFunc that has its schedule, and TVM's numbers for the kinds of a block's axes."""

from typing import Any

SCHEDULED = "tirx.is_scheduled"
OPAQUE = 8  # relax's OpPatternKind.kOpaque: FuseOps leaves the function alone
SPATIAL, REDUCED = 0, 2  # IterVar types of a block's axes


def finished(func: Any) -> Any:
    """Mark a scheduled function, so that neither FuseOps nor a later schedule rule touches it."""
    return func.with_attrs({SCHEDULED: True, "op_pattern": OPAQUE})
