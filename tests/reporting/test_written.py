"""Pages as files: JSON by its schema, HTML that asks for nothing, text."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.reporting.page import KernelCall, KernelTable, Page, RefusalView, Search, SearchStep, TunedLayer
from reparam_compiler.reporting.schema import schema, to_json
from reparam_compiler.reporting.words import percent, short
from reparam_compiler.reporting.writing import write_page
from tests.support.pages import fused_page, refused_page, swept_page

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
PAGES = [fused_page, refused_page, swept_page]


def timed_page() -> Page:
    """With kernels, as of a compiled model, and a search for them."""
    calls = (
        KernelCall("conv", "winograd 4x4", (1, 16, 9, 7), 1e-4, 0.8, 1_000_000, 40_000),
        KernelCall("relu", "general", (1, 16, 9, 7), 2.5e-5, 0.2, 0, 0),
    )
    layers = (
        TunedLayer("conv_3x3", 2, 5, 2e-4, 1e-4, "winograd 4x4", "0.60 of the rule's time in the running net"),
        TunedLayer("softmax", 1, 0, None, None, "", ""),
    )
    search = Search(layers, (SearchStep(1, 0.5, 4e-4), SearchStep(2, 0.9, 2e-4)), 2, 5, 1, 5e-4, 3e-4)
    return replace(fused_page(), search=search, kernels=KernelTable(calls, 1.3e-4, 1, 1e11, 2e10))


def test_the_schema_that_is_committed_is_that_of_the_code() -> None:
    text = json.dumps(schema(), indent=2) + "\n"
    if os.environ.get("UPDATE_GOLDENS"):
        SCHEMA.write_text(text)
    assert SCHEMA.read_text() == text


@pytest.mark.parametrize("page", [*PAGES, timed_page])
def test_json_is_of_the_schema(page: object) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(page())))  # type: ignore[operator]


def test_the_schema_refuses_what_is_no_page() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    record = json.loads(to_json(fused_page()))
    record["regions"][0]["error"] = "small"
    assert not jsonschema.Draft202012Validator(schema()).is_valid(record)


@pytest.mark.parametrize("page", [*PAGES, timed_page])
def test_html_asks_for_nothing_and_has_all_sections(page: object, tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    pytest.importorskip("igraph")
    found: Page = page()  # type: ignore[operator]
    write_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"""<(script|link|img|iframe)[^>]*(src|href)=["'](?!data:)""", text)
    assert not re.search(r"url\((?!['\"]?data:)|@import", text.split("<script")[0])
    sections = {"regions": found.regions, "refusals": found.refusals, "channels": found.families, "kernels": found.kernels}
    sections |= {"repair": found.repair, "sweep": found.sweep, "search-kernels": found.search}
    assert all((f'id="{name}"' in text) == bool(content) for name, content in sections.items())


def test_what_a_model_calls_its_nodes_cannot_end_a_script_or_open_an_element(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    pytest.importorskip("igraph")
    evil = "</script><img src=x onerror=alert(1)>"
    page = replace(fused_page(), title=evil, refusals=(RefusalView(evil, "add", evil),))
    write_page(page, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert text.count("</script>") == fused_text(tmp_path).count("</script>")


def fused_text(folder: Path) -> str:
    write_page(fused_page(), folder / "plain.html")
    return (folder / "plain.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [*PAGES, timed_page])
def test_text_has_a_line_for_each_region_refusal_and_family(page: object, tmp_path: Path) -> None:
    found: Page = page()  # type: ignore[operator]
    write_page(found, tmp_path / "page.txt")
    text = (tmp_path / "page.txt").read_text(encoding="utf-8")
    assert f"{len(found.refusals)} refused" in text or not found.refusals
    names = [region.node for region in found.regions] + [family.name for family in found.families]
    assert all(name in text for name in names)


def test_text_has_a_line_for_each_ratio(tmp_path: Path) -> None:
    write_page(swept_page(), tmp_path / "page.txt")
    text = (tmp_path / "page.txt").read_text(encoding="utf-8")
    assert all(name in text for name in ("as it came", "25 %", "50 %", "removes no channel", "after repair"))


def test_names_in_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    page = replace(fused_page(), title="net[b]", refusals=(RefusalView("/conv[/x]", "add", "it reads [blocks]"),))
    write_page(page, tmp_path / "page.txt")
    text = (tmp_path / "page.txt").read_text(encoding="utf-8")
    assert all(name in text for name in ("net[b]", "/conv[/x]", "it reads [blocks]"))


def test_another_suffix_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"found the suffix '\.pdf'; expected \.html, \.json, \.txt"):
        write_page(fused_page(), tmp_path / "page.pdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "", "0"),
        (999.0, "", "999"),
        (1000.0, "", "1 k"),
        (999_600.0, "", "1 M"),
        (1e9, "", "1 G"),
        (1023 * 1024.0, "B", "0.999 MiB"),
        (2_516_582.0, "B", "2.4 MiB"),
        (1.5, "", "1.5"),
        (3e15, "", "3e+03 T"),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(value: float, unit: str, text: str) -> None:
    assert short(value, unit) == text


def test_changes_are_told_in_percent() -> None:
    assert [percent(2, 1), percent(1, 2), percent(3, 3), percent(0, 1)] == ["−50 %", "+100 %", "", ""]
