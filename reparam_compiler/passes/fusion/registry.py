"""The linear ops: which rule makes each a `ConvKernel`. Adding an op is one decorated function:

    @register_linear("avg_pool")
    def average_pool(node: Node, reads: SourceLayout) -> ConvKernel: ...

A *linear rule* (`linear_rules.py`) sees an op with one computed input and gives the operator that the op is. A *merge rule*
(`merge_rules.py`) sees what all that its node reads is carried as, as functions of one common source, and gives that of the
node. Both raise `NotFusable(reason)` where the op has no exact convolution; the reason goes to the report.
"""

from collections.abc import Callable

from reparam_compiler.core.kernel import ConvKernel
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node
from reparam_compiler.passes.fusion import linear_rules as rules
from reparam_compiler.passes.fusion import merge_rules as merges
from reparam_compiler.passes.fusion.abstract_values import SourceLayout
from reparam_compiler.passes.fusion.merge_rules import MergeRule
from reparam_compiler.vocabulary.resolve import check_registered

LinearRule = Callable[[Node, SourceLayout], ConvKernel]

RULES: dict[str, LinearRule] = {
    "conv": rules.conv,
    "conv_transpose": rules.conv_transpose,
    "linear": rules.linear,
    "batch_norm": rules.batch_norm,
    "identity": rules.identity,
    "avg_pool": rules.average_pool,
    "pixel_unshuffle": rules.pixel_unshuffle,
    "space_to_depth": rules.pixel_unshuffle,
}
MERGES: dict[str, MergeRule] = {
    "add": merges.sum_of,
    "sub": merges.sum_of,
    "mul": merges.product,
    "div": merges.quotient,
    "concat": merges.concatenation,
    "stack": merges.stack,
    "sum": merges.reduction,
    "mean": merges.reduction,
    "reshape": merges.reshape,
    "flatten": merges.reshape,
    "slice": merges.cut,
    "split": merges.split,
    "tuple_get": merges.tuple_get,
    "pad": merges.padding,
    "slice_update": merges.slice_update,
}
_OWN = frozenset({*RULES, *MERGES})
"""Kinds that frontends read: an opaque op of such a name is one that they could not read, and has no rule."""


def register_linear(name: str, *, override: bool = False) -> Callable[[LinearRule], LinearRule]:
    """Registers the rule that makes an op a convolution.

    >>> @register_linear("mine::scale")                      # mine::scale(x, factor), a custom op
    ... def scale(node: Node, reads: SourceLayout) -> ConvKernel:
    ...     factor = np.full(reads.channels, node.op.arguments["factor"])
    ...     return diagonal(factor, np.zeros(reads.channels), reads.rank)

    Args:
        name: of a custom op with its namespace (`mine::scale`), of a function or of a leaf module with its package
            (`package.module.scale`), or of an op of torch's or ours as reports call it (`cumsum`, `batch_norm`). A function or
            op of the same name from elsewhere is another op. In ONNX the domain and the type (`mine::Scale`), where the model
            has a function of them: that is what the rule is proven by, and without one the op stays as it is.
        override: exchange the rule that there is.

    Returns:
        What registers a rule: a function from the node (`node.op.arguments`: the numbers and words of the call, by the names of
        the parameters, or by their positions where these have no names, and those that a leaf module holds; `node.params`: the
        tensors among its arguments) and the layout of what it reads to the operator that it is. The rule raises `NotFusable`
        where it is none.

    Raises:
        ValueError: there is a rule already and `override` is not set, or nothing is called so.
    """
    if name not in _OWN:
        check_registered(name)

    def register(rule: LinearRule) -> LinearRule:
        if not override and (name in RULES or name in MERGES):
            raise ValueError(f"{name} has a rule already; pass override=True to exchange it")
        RULES[name] = rule
        return rule

    return register


def is_linear(node: Node) -> bool:
    """True where there is a rule for the node, though it may refuse the node's attributes."""
    return linear_rule(node) is not None or merge_rule(node) is not None


def linear_rule(node: Node) -> LinearRule | None:
    """The rule of an op with one computed input."""
    return RULES.get(_name(node))


def merge_rule(node: Node) -> MergeRule | None:
    """The rule of an op that may read several."""
    if isinstance(node.op, ops.Opaque) and ops.Facts.SHAPED_AS_OTHER in node.op.facts:
        return merges.reshape
    if isinstance(node.op, ops.Opaque) and node.op.slices:
        return merges.indexed
    return MERGES.get(_name(node))


def _name(node: Node) -> str:
    """What a rule goes by."""
    return "" if isinstance(node.op, ops.Opaque) and node.op.name in _OWN else node.op.name
