"""What a caller says of ops that pruning does not understand by itself: how they couple channels.

A rule gives a coupling model: an op of `ir.ops` that treats channels as the op does. For values the op itself is run.

    Slicewise(axes)         along `axes` each slice of the result is made of the same slices of what is read
    Rearrange(by_number)    elements are moved by a rule that is the same after some have left
    Glu(axis)               each channel of the first half goes with its fellow of the second
    Elementwise, Conv …     any op of `ir.ops` that computes the same from the same inputs
"""

from collections.abc import Callable

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node
from reparam_compiler.vocabulary.resolve import check_registered

CouplingRule = Callable[[Node], ops.Op | None]
COUPLING_RULES: dict[str, CouplingRule] = {}
"""The rules by the names of ops."""


def register_coupling(name: str, *, override: bool = False) -> Callable[[CouplingRule], CouplingRule]:
    """Registers how an op couples the channels of what it reads and gives.

    >>> @register_coupling("mine::scale")                    # mine::scale(x, factor), a custom op
    ... def scale(node: Node) -> ops.Op | None:
    ...     return ops.Slicewise(tuple(range(len(node.type.shape))))

    Args:
        name: as `register_linear` takes it: `mine::scale`, `package.module.scale`, or an op of torch's that reports call so. An
            ONNX type of another domain (`mine::Scale`) must be a function of the model: what cannot be run keeps its channels.
        override: exchange the rule that there is.

    Returns:
        What registers a rule: a function from the node (`node.op.arguments`: the numbers and words of the call, `node.inputs`:
        its tensors, `node.type`: the type of its value, where that is known) to a coupling model, or to None for a call that is
        not understood. The masked and the pruned model are compared for your rule as for ours.

    Raises:
        ValueError: there is a rule already and `override` is not set, or nothing is called so.
    """
    check_registered(name)

    def register(rule: CouplingRule) -> CouplingRule:
        if not override and name in COUPLING_RULES:
            raise ValueError(f"{name} has a coupling rule already; pass override=True to exchange it")
        COUPLING_RULES[name] = rule
        return rule

    return register


def registered_coupling(node: Node) -> ops.Op | None:
    """The coupling model that a caller registered for an opaque node; None where there is no rule."""
    rule = COUPLING_RULES.get(node.op.name)
    return rule(node) if rule is not None else None
