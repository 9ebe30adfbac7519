"""Which target of several a machine takes: of those that it runs the strongest, by its vectors and its features."""

from collections.abc import Sequence

from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.target import TargetLike, resolve


def best_here(targets: Sequence[TargetLike]) -> int:
    """The place of the target that this machine runs best; 0 where it runs none."""
    backends = [backend_for(resolve(target)) for target in targets]
    runnable = [place for place, backend in enumerate(backends) if not backend.unrunnable_here()]
    return max(runnable, key=lambda place: backends[place].strength(), default=0)


def why_none_loads(targets: Sequence[TargetLike]) -> str:
    """Why this machine may load code for none of the targets; nothing where it may for one."""
    reasons = [backend_for(resolve(target)).unloadable_here() for target in targets]
    return "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""
