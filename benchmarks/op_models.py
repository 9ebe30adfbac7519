"""What a route's list of one-op models is made of: `op_coverage_torch.py`, `op_coverage_onnx.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class OneOp:
    """A model of one op in one setting.

    name: unique in its route; the op, then what is awkward about it. make: the model, and what it is called with; None where
    the model knows the shapes of its inputs and random ones will do.
    """

    name: str
    make: Callable[[], tuple[Any, Sequence[Any] | None]]
