"""Pages name all that they are about: every rule, every error, every public name, every example; and what they count is so."""

import inspect
import re
from pathlib import Path

import pytest

import reparam_compiler
from reparam_compiler import errors
from reparam_compiler.passes.fusion.registry import MERGES, RULES
from tests.support.doc_blocks import ROOT

DOCS = ROOT / "docs"
ERRORS = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONGEST = 80
LONGER = {"fine_tune_digits.py", "train_digits.py"}
"""Programs with settings of their own, older than the rule that an example fits on a screen or two."""


@pytest.mark.parametrize("kind", sorted({*RULES, *MERGES}))
def test_the_algebra_has_every_kind_of_op_that_has_a_rule(kind: str) -> None:
    assert f"`{kind}`" in (DOCS / "algebra.md").read_text()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_on_its_page_with_a_remedy(error: type) -> None:
    assert f"::: reparam_compiler.errors.{error.__name__}\n" in (DOCS / "errors.md").read_text()
    assert "What to do:" in (inspect.getdoc(error) or ""), f"{error.__name__}: its docstring has no remedy"


def test_every_public_name_is_in_the_reference() -> None:
    shown = (DOCS / "reference.md").read_text() + (DOCS / "errors.md").read_text()
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", shown, re.MULTILINE)}
    assert listed >= set(reparam_compiler.__all__)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_short_and_on_the_site(path: Path) -> None:
    name, lines = path.name, len(path.read_text().splitlines())
    assert lines < LONGEST or name in LONGER, f"{name} has {lines} lines"
    assert f"examples/{name}" in (DOCS / "index.md").read_text() or name == "train_digits.py"


def test_a_page_that_the_site_shows_exists() -> None:
    named = re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    for page in named:
        path = ROOT / page.removeprefix("repository/") if page.startswith("repository/") else DOCS / page
        assert path.exists() or path.with_suffix("").exists(), page
