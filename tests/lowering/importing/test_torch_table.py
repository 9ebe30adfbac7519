"""The table of converters: each is of a family and says what TVM makes of the op, and the page has them all."""

import os
from pathlib import Path

import pytest

from reparam_compiler.lowering.importing.torch_ops.program import FAMILIES, page
from reparam_compiler.lowering.importing.torch_ops.table import INSTEAD

pytestmark = pytest.mark.tvm
PAGE = Path(__file__).parents[3] / "docs" / "torch_ops.md"


def test_every_converter_is_of_a_family_and_says_what_it_mends() -> None:
    assert {converter.convert.__module__ for converter in INSTEAD.values()} == {family.__name__ for family in FAMILIES}
    assert all(converter.tvm for converter in INSTEAD.values())


def test_page_lists_every_converter() -> None:
    if os.environ.get("UPDATE_GOLDENS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "run UPDATE_GOLDENS=1 pytest tests/lowering/importing"
    assert all(f"| `{name.partition('.')[0]}` |" in page() for name in INSTEAD)
