"""Whether two traces are the same program: the test of a module that was put together from a rewritten trace.

Both are followed from what they give back to what they read. Identities count for nothing; a write in place must stand between
the same reads.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam_compiler.frontends.torch.aliasing import writes
from reparam_compiler.frontends.torch.fx import FxFrontend, WrittenTrace
from reparam_compiler.frontends.torch.graph_module_writer import attribute
from reparam_compiler.frontends.torch.native import NativeNodes
from reparam_compiler.frontends.torch.tracing.calls import is_identity

Same = Callable[[fx.Node], bool]
"""Whether a node only passes on what it is given first."""


def apart(written: WrittenTrace, found: fx.GraphModule) -> str | None:
    """Where a module, traced or exported anew, is another program than that which was written, in words; None where it is not.

    Raises UnsupportedModelError where it cannot be read.
    """
    reading = FxFrontend().read(found)
    NativeNodes({node.name: node for node in found.graph.nodes}, reading.in_place)  # later readers read what was written
    named = {node for name, node in written.nodes.items() if name in written.same}
    return difference(written.model, found, named.__contains__, lambda node: node.name in reading.same)


def difference(expected: fx.GraphModule, found: fx.GraphModule, is_same: Same, found_is_same: Same) -> str | None:
    """A node of `found` that is not what `expected` has there, in words; None for the same program.

    is_same, found_is_same: which nodes of each are copies and the like; nn.Identity always is one.
    """
    ends = _ends(expected), _ends(found)
    if len(ends[0]) != len(ends[1]):
        return f"{len(ends[1])} calls that nobody reads instead of {len(ends[0])}"
    same: dict[fx.Node, fx.Node] = {}
    waiting = list(zip(*ends, strict=True))
    while waiting:
        wanted, got = waiting.pop()
        if same.get(wanted) is got:
            continue
        reads = _same_call(wanted, got, expected, found) if wanted not in same else None
        if reads is not None:
            same[wanted] = got
            waiting += reads
        elif is_same(wanted) or is_identity(wanted, expected):
            waiting.append((wanted.all_input_nodes[0], got))
        elif found_is_same(got) or is_identity(got, found):
            waiting.append((wanted, got.all_input_nodes[0]))
        else:
            return f"{got.name} instead of {wanted.name}"
    return _moved_over_a_write(same, expected, found)


def _ends(model: fx.GraphModule) -> list[fx.Node]:
    """The inputs, the output, and what is called for what it does."""
    return [
        node
        for node in model.graph.nodes
        if node.op in ("placeholder", "output") or node.is_impure() or (not node.users and writes(node, model))
    ]


def _same_call(
    wanted: fx.Node, got: fx.Node, expected: fx.GraphModule, found: fx.GraphModule
) -> Sequence[tuple[fx.Node, fx.Node]] | None:
    """What two nodes read, in pairs; None where they are not the same call."""
    if wanted.op != got.op:
        return None
    if wanted.op == "call_module":
        if not same_module(expected.get_submodule(str(wanted.target)), found.get_submodule(str(got.target))):
            return None
    elif wanted.op == "get_attr":
        if not _same_value(attribute(expected, str(wanted.target)), attribute(found, str(got.target))):
            return None
    elif wanted.op != "output" and wanted.target != got.target:
        return None
    (reads, how), (found_reads, found_how) = _arguments(wanted), _arguments(got)
    return list(zip(reads, found_reads, strict=True)) if how == found_how else None


def _arguments(node: fx.Node) -> tuple[list[fx.Node], Any]:
    """The nodes that a call reads, and its arguments with a word in place of each. What an assertion says is left out."""
    reads: list[fx.Node] = []

    def read(source: fx.Node) -> str:
        reads.append(source)
        return "a node"

    args: Any = node.args[:1] if node.target is torch._assert else node.args
    return reads, fx.map_arg((args, dict(node.kwargs)), read)


def same_module(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers compute the same: one layer, or two of a class that say the same of themselves and hold the same."""
    if one is other:
        return True
    if type(one) is not type(other) or repr(one) != repr(other) or one.training is not other.training:
        return False
    held = [{**dict(module.named_parameters()), **dict(module.named_buffers())} for module in (one, other)]
    return held[0].keys() == held[1].keys() and all(_same_value(held[0][name], held[1][name]) for name in held[0])


def _same_value(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    if (one.dtype, one.device, one.shape) != (other.dtype, other.device, other.shape):
        return False
    return one.is_meta or torch.equal(one, other)


def _moved_over_a_write(same: dict[fx.Node, fx.Node], expected: fx.GraphModule, found: fx.GraphModule) -> str | None:
    """A call that stands on the other side of a write in place."""
    writing = {node for node in same if writes(node, expected)}
    if not writing:
        return None
    before, order = _writes_before(expected, {node: node for node in same}, writing)
    found_before, found_order = _writes_before(found, {got: wanted for wanted, got in same.items()}, writing)
    if order != found_order:
        return "writes in place in another order"
    moved = (got for wanted, got in same.items() if wanted.op.startswith("call") and before[wanted] != found_before[wanted])
    return next((f"{got.name} stands on the other side of a write in place" for got in moved), None)


def _writes_before(
    model: fx.GraphModule, names: dict[fx.Node, fx.Node], writing: set[fx.Node]
) -> tuple[dict[fx.Node, int], list[fx.Node]]:
    """For each node that has a name how many writes stand before it, and the writes in their order."""
    before: dict[fx.Node, int] = {}
    order: list[fx.Node] = []
    for node in model.graph.nodes:
        if node in names:
            before[names[node]] = len(order)
            if names[node] in writing:
                order.append(names[node])
    return before, order
