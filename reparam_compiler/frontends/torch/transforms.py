"""Transforms of functions in a graph: torch.export has `torch.func.vmap` as calls that enter a level of it and leave it again.

The level is the whole process's. Between the two calls no node stands for itself, and a graph that is run without the second
one, as nobody reads what that gives, leaves the process in the level.
"""

from torch import fx

from reparam_compiler.errors import UnsupportedModelError


def check_transforms(graph: fx.Graph) -> None:
    """Raises UnsupportedModelError for a graph that enters a level of vmap."""
    for node in graph.nodes:
        if getattr(node.target, "__name__", "") == "_vmap_increment_nesting":
            raise UnsupportedModelError(
                f"{node.name}: within torch.func.vmap no layer stands for itself; call the layers on a batch in its place"
            )
