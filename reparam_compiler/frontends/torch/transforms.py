"""Transforms of functions in a graph: torch.export has `torch.func.vmap` and `jvp` as calls that enter a level and leave it.

The level is the whole process's. Between the two calls no node stands for itself, and a graph that is run without the second
one, as nobody reads what that gives, leaves the process in the level.
"""

from torch import fx

from reparam_compiler.errors import UnsupportedModelError

_ENTERS = {
    "_vmap_increment_nesting": ("torch.func.vmap", "call the layers on a batch in its place"),
    "_jvp_increment_nesting": ("torch.func.jvp", "take the derivative of the model, not in it"),
    "_enter_dual_level": ("torch.autograd.forward_ad.dual_level", "take the derivative of the model, not in it"),
}
"""What is entered by a call of this name, and what to do in its place."""


def check_transforms(graph: fx.Graph) -> None:
    """Raises UnsupportedModelError for a graph that enters a level of a transform."""
    for node in graph.nodes:
        if (found := _ENTERS.get(getattr(node.target, "__name__", ""))) is not None:
            transform, instead = found
            raise UnsupportedModelError(f"{node.name}: within {transform} no layer stands for itself; {instead}")
