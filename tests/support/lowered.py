"""A Relax module lowered, as `compile` does it between its import and TVM's compilation."""

from typing import Any

from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.conv.accuracy import MAX_ERROR


def lower(module: Any, target: Any, *, max_error: float = MAX_ERROR) -> Any:
    """Relax with high-level ops -> Relax that calls scheduled kernels only, by the backend of the target, by rule."""
    return backend_for(target).lower(module, measured=None, max_error=max_error)
