"""Every kind of op says what it reads, by name; a node gives its operands by these names, and the verifier holds it to them."""

from typing import get_args

import numpy as np
import pytest

from reparam_compiler.errors import InvalidGraphError, UnsupportedModelError
from reparam_compiler.interpreter import rules
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.ir.kind import Kind, Operands
from reparam_compiler.ir.verifier import check

X = Node("x", ops.Input(), ())
PLAIN_CONV = ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1))


def param(*shape: int) -> Param:
    return Param.of(np.ones(shape), role="weight", dtype="f32")


def _kinds_below(base: type[Kind]) -> set[str]:
    """The names of the kinds that derive from a base, less the bases among them."""
    bases = {
        kind.__name__ for kind in base.__subclasses__() if kind.__subclasses__() and kind.__name__ in ("Weighted", "AlongAxis")
    }
    below = {kind.__name__ for kind in base.__subclasses__()} - bases
    return below.union(*(_kinds_below(kind) for kind in base.__subclasses__() if kind.__name__ in bases))


def test_the_closed_set_holds_every_kind() -> None:
    assert {kind.__name__ for kind in ops.KINDS} == _kinds_below(Kind)


@pytest.mark.parametrize("kind", ops.KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_declares_its_operands(kind: type[Kind]) -> None:
    declared = kind.operands
    assert isinstance(declared, Operands)
    assert len(set(declared.names)) == len(declared.names)
    assert declared.names or kind in (ops.Input, ops.Opaque)
    assert not (declared.more and declared.optional)  # else the number of an input would not say which operand it is
    assert [declared.name(declared.index(name)) for name in declared.names] == list(declared.names)


@pytest.mark.parametrize("kind", ops.KINDS, ids=lambda kind: kind.__name__)
def test_the_interpreter_has_a_family_for_every_kind(kind: type[Kind]) -> None:
    families = (
        rules._Weighted,
        rules._Window,
        rules._Pointwise,
        rules._Across,
        rules._Join,
        rules._Move,
        rules._NotRun,
        ops.Opaque,
    )
    assert sum(kind in (get_args(family) or (family,)) for family in families) == 1


def test_what_only_models_couplings_is_not_run() -> None:
    with pytest.raises(UnsupportedModelError, match="the interpreter has no rule for slicewise"):
        rules.apply(ops.Slicewise((0,)), (None,))


def test_operands_are_had_by_name() -> None:
    weight, bias = param(4, 4, 1, 1), param(4)
    node = Node("c", PLAIN_CONV, ("x", weight, bias))
    assert (node.operand("x"), node.operand("weight"), node.operand("bias")) == ("x", weight, bias)
    assert Node("c", PLAIN_CONV, ("x", weight)).operand("bias") is None
    with pytest.raises(InvalidGraphError, match="no operand is called mean; declared: x, weight, bias"):
        node.operand("mean")


def test_an_operand_is_exchanged_or_added_by_name() -> None:
    weight, bias = param(4, 4, 1, 1), param(4)
    bare = Node("c", PLAIN_CONV, ("x", weight))
    assert bare.with_operands({"bias": bias}).inputs == ("x", weight, bias)
    assert bare.with_operands({"weight": None}).inputs == ("x", None)
    masked = Node("n", ops.LayerNorm((4,), 1e-5), ("x",)).with_operands({"mask": bias})
    assert masked.inputs == ("x", None, None, bias)
    assert bare.inputs == ("x", weight)


def test_an_opaque_op_has_the_operands_of_its_coupling_model() -> None:
    like = ops.Einsum("ab", "bc", "ac")
    node = Node("o", ops.Opaque("mm", coupling=like, reads=2), ("x", "y", "number"))
    assert node.operand("b") == "y"
    assert node.op.signature is like.operands
    assert Node("o", ops.Opaque("mm"), ("x", "y")).op.signature.names == ()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("c", PLAIN_CONV, ("x",)), r"c \(conv\): no weight, which it cannot do without"),
        (Node("c", PLAIN_CONV, ("x", None, param(4))), r"c \(conv\): no weight"),
        (Node("c", PLAIN_CONV, ("x", param(4, 4, 1, 1), None, None)), r"4 inputs, expected at most 3 \(x, weight, bias\)"),
        (Node("m", ops.Mul(), ("x",)), r"m \(mul\): no b"),
        (Node("r", ops.Elementwise("relu"), ()), r"r \(relu\): no x"),
        (Node("r", ops.Elementwise("relu"), ("x", "x")), r"2 inputs, expected at most 1 \(x\)"),
        (Node("j", ops.Concat(1), ()), r"j \(concat\): no x"),
        (Node("i", ops.Input(), ("x",)), "1 inputs, expected at most 0"),
        (Node("o", ops.Opaque("mm", coupling=ops.Einsum("ab", "bc", "ac"), reads=1), ("x", "x")), r"o \(mm\): no b"),
    ],
)
def test_the_verifier_refuses_what_an_op_does_not_declare(node: Node, message: str) -> None:
    with pytest.raises(InvalidGraphError, match=message):
        check(Graph.of([X, node], [node.id]))


@pytest.mark.parametrize(
    "node",
    [
        Node("b", ops.BatchNorm(), ("x", None, None, param(4), param(4))),
        Node("s", ops.Add((1.0, 1.0, 1.0)), ("x", "x", param(1))),
        Node("o", ops.Opaque("mm", coupling=ops.Einsum("ab", "bc", "ac"), reads=2), ("x", "x", "x", "x")),
        Node("n", ops.GroupNorm(None, 1e-5), ("x",)),
    ],
)
def test_operands_may_be_left_out_where_the_op_says_so(node: Node) -> None:
    check(Graph.of([X, node], [node.id]))


def test_a_transposed_conv_has_its_channels_the_other_way_round() -> None:
    plain = ops.Conv((1,), ((0, 0),), (1,), groups=2)
    transposed = ops.ConvTranspose((1,), ((0, 0),), (0,), (1,), groups=2)
    assert (plain.output_axis, plain.input_axis, plain.channels_read((6, 4, 3))) == (0, 1, 8)
    assert (transposed.output_axis, transposed.input_axis, transposed.channels_read((6, 4, 3))) == (1, 0, 6)
    assert not plain.is_depthwise((6, 4, 3))
    assert plain.is_depthwise((6, 1, 3))
    assert transposed.is_depthwise((2, 4, 3))
    assert not ops.Linear().is_depthwise((1, 1))
