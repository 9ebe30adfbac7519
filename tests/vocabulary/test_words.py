"""`passes/` and `ir/` name no op of torch or ONNX: what they need to know of one stands on its node, as a fact.

The forbidden words are what the rows are called: by torch, as functions, methods, attributes and modules, and by ONNX. They are
looked for among string literals, whole ones and lists of words; prose in docstrings and messages is no name of an op. Words
that are ours as well are allowed: the kinds of ops of the IR (`add`, `conv_transpose`) and their classes, the functions that
`Elementwise`, `Move` and `Reduce` name (`relu`, `mean`), and the words of `HOMOGRAPHS`, which mean something else here. That no
pass looks at `Opaque.target` is checked beside it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from reparam_compiler.ir import ops
from reparam_compiler.vocabulary.resolve import ROWS

PACKAGE = Path(__file__).parents[2] / "reparam_compiler"
FILES = sorted([*(PACKAGE / "passes").rglob("*.py"), *(PACKAGE / "ir").rglob("*.py")])
REDUCTIONS = {"mean", "sum", "max", "min", "norm"}
KINDS = {re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower() for kind in get_args(ops.Op)}
FUNCTIONS = {row.name for row in ROWS.values() if row.form in ("pointwise", "move")}
HOMOGRAPHS = {
    "sub",  # what the printer calls an Add that subtracts
    "var",  # an operand of a batch norm
    "zeros",  # a padding mode
    "bool",  # a dtype
    "random",  # criteria of importance
    "geometric",
    "uniform",  # an allocation
    "fold",  # a repair
    "data",  # a key of numpy's array interface
}
OWN = KINDS | {kind.__name__ for kind in get_args(ops.Op)} | FUNCTIONS | REDUCTIONS | HOMOGRAPHS
WORDS = frozenset(
    word
    for row in ROWS.values()
    for word in (
        *row.spelled,
        *row.attributes,
        *(kind.__name__ for kind in row.modules),
        *(function.__name__ for function in (*row.functions, *row.in_place)),
        *(stated.name for stated in row.onnx),
    )
)


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """The string literals of a file that are no docstring and no part of a message."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    prose |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


def named(path: Path) -> list[str]:
    """The words of torch or ONNX that a file has as names of ops."""
    found = []
    for line, text in literals(path):
        words = text.split()
        if words and all(word in WORDS for word in words):
            found += [f"{line}: {word}" for word in words if word not in OWN]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_passes_and_ir_name_no_op_of_torch_or_onnx(path: Path) -> None:
    assert not named(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pass_looks_at_what_the_model_calls_an_op(path: Path) -> None:
    if path.name == "ops.py":
        return  # it declares `Opaque.target`, and gives it to the reports as the op's name
    attributes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    assert not [node.lineno for node in attributes if node.attr == "target"]


def test_a_table_of_names_would_be_found(tmp_path: Path) -> None:
    source = tmp_path / "table.py"
    source.write_text(
        '"""roll"""\nLINEAR = frozenset({"roll", "DepthToSpace", "a roll"})\nWORDS = "flip tile".split()\nSUM = "sum"\n'
    )
    assert named(source) == ["2: roll", "2: DepthToSpace", "3: flip", "3: tile"]
