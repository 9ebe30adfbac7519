"""The table of rules: each says what TVM does and what stands instead, and the page has them all."""

import os
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from reparam_compiler.lowering.importing.onnx_ops.rules import FAMILIES, RULES, page
from reparam_compiler.lowering.importing.onnx_ops.table import ROWS

PAGE = Path(__file__).parents[3] / "docs" / "onnx_ops.md"


def test_every_rule_is_of_a_family_and_says_what_it_mends() -> None:
    names = {family.__name__ for family in FAMILIES}
    assert {row.rule.__module__ for row in ROWS.values()} == names
    assert all(row.tvm and row.rule.__doc__ for row in ROWS.values())


def test_page_lists_every_rule() -> None:
    if os.environ.get("UPDATE_GOLDENS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "run UPDATE_GOLDENS=1 pytest tests/lowering/importing"
    assert page().count("\n| ") == len(RULES) + len(FAMILIES)
