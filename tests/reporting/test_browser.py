"""The page in a real browser: it says nothing to the console, asks for nothing, and does what is clicked and typed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reparam_compiler.reporting.writing import write_page
from tests.reporting.test_written import timed_page
from tests.support.browser import CHROMIUM, MODEL, Shown, chromium, opened
from tests.support.pages import large_page, refused_page, swept_page

for package in ("bokeh", "igraph", "jinja2", "playwright"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here (Debian: apt-get install chromium)")
PAGES = {"refused": refused_page, "swept": swept_page, "timed": timed_page, "large": large_page}
SCALE = """(side) => {
    const {inner_width, inner_height, x_range, y_range} = find(side);
    return [inner_width / (x_range.end - x_range.start), inner_height / (y_range.end - y_range.start)];
}""".replace("find", f"({MODEL})")
"""Pixels for a unit along each axis of a canvas."""
ON_PAPER = """() => {
    const chart = document.getElementById("memory-chart");
    return [chart.getBoundingClientRect().width, getComputedStyle(chart.firstElementChild).filter];
}"""
"""How wide a chart is, and how its colours are changed."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages")
    for name, page in PAGES.items():
        write_page(page(), path / f"{name}.html")
    return path


@pytest.fixture(scope="module")
def pages(browser: Any, folder: Path) -> dict[str, Shown]:
    return {name: opened(browser, folder / f"{name}.html") for name in ("refused", "large")}


@pytest.fixture
def shown(pages: dict[str, Shown], request: pytest.FixtureRequest) -> Iterator[Shown]:
    """The page that a test names, with nothing chosen; and nothing on the console at its end."""
    found = pages[getattr(request, "param", "refused")]
    found.page.bring_to_front()
    found.press("Escape")
    yield found
    assert found.said == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("light", "print")])
def test_a_page_loads_itself_alone_and_says_nothing(browser: Any, folder: Path, name: str, scheme: Any, media: Any) -> None:
    found = opened(browser, folder / f"{name}.html", scheme, media)
    assert found.said == []
    assert [url for url in found.asked if not url.startswith("data:")] == [(folder / f"{name}.html").as_uri()]
    found.page.close()


def test_a_click_tells_of_a_node_and_shows_what_it_became(shown: Shown) -> None:
    (region,) = refused_page().regions
    shown.click("before", region.nodes[0])
    assert region.nodes[0] in shown.detail
    assert "batch norm into the layer before it" in shown.detail
    assert "relative, float64" in shown.detail
    assert shown.drawn("before", "chosen") == shown.drawn("after", "chosen") == 1


def test_a_refused_node_tells_its_reason(shown: Shown) -> None:
    refusal = refused_page().refusals[0]
    shown.press("r")
    assert refusal.node in shown.detail
    assert refusal.reason in shown.detail


def test_a_pointer_over_a_node_sees_its_name(shown: Shown) -> None:
    shown.page.mouse.move(*shown.position("before", "wide"))
    shown.page.locator(".bk-Tooltip", has_text="wide").first.wait_for()


@pytest.mark.parametrize("shown", ["large"], indirect=True)
def test_blocks_fold_and_open_by_keys_and_clicks(shown: Shown) -> None:
    begun = shown.drawn("before")
    assert begun < 250 < len(large_page().before.nodes)
    shown.press("c")
    assert shown.drawn("before") == 2
    shown.click("before", "stages", times=2)
    assert shown.drawn("before") == 11
    shown.click("before", "stages.3", times=2)
    assert shown.drawn("before") == 30
    shown.press("Enter")
    shown.press("o")
    assert shown.drawn("before") == len(large_page().before.nodes)


@pytest.mark.parametrize("shown", ["large"], indirect=True)
def test_search_goes_from_match_to_match_into_folded_blocks(shown: Shown) -> None:
    shown.press("c")
    shown.press("/")
    shown.page.keyboard.type("v1234")
    assert shown.page.inner_text("#found") == "1 of 2"
    assert "v1234" in shown.detail
    shown.page.keyboard.press("Enter")
    assert shown.page.inner_text("#found") == "2 of 2"
    shown.page.fill("#search", "nothing is called so")
    assert shown.page.inner_text("#found") == "none"


def test_keys_go_along_the_graph_and_across(shown: Shown) -> None:
    shown.press("ArrowDown")
    assert shown.detail.startswith("x")
    shown.press("ArrowDown")
    assert shown.detail.startswith("first_0")
    shown.press("ArrowRight")
    assert "· after" in shown.detail
    shown.press("Escape")
    assert shown.detail == ""


def test_wheel_and_keys_move_and_zoom_both_canvases_alike(shown: Shown) -> None:
    def scale(side: str) -> tuple[float, float]:
        width, height = shown.page.evaluate(SCALE, side)
        return width, height

    before = scale("before")
    shown.press("+")
    for side in ("before", "after"):
        assert scale(side) == pytest.approx((before[0] * 1.25,) * 2, rel=0.01)


def test_tables_sort_by_a_head(shown: Shown) -> None:
    head = shown.page.locator("#layers th", has_text="multiply-adds")
    head.click()
    values = shown.page.eval_on_selector_all(
        "#layers tbody tr", "rows => rows.map((row) => Number(row.cells[4].dataset.value))"
    )
    assert values == sorted(values)
    head.click()
    assert head.get_attribute("aria-sort") == "descending"


def test_a_name_in_a_table_goes_to_its_node(shown: Shown) -> None:
    link = shown.page.locator("#regions a.node").first
    link.click()
    assert shown.detail.startswith(link.inner_text())


def test_dark_pages_are_dark_also_in_their_canvases(browser: Any, folder: Path) -> None:
    found = opened(browser, folder / "swept.html", "dark")
    dark = found.ground("before")
    assert luminance(dark) < 0.2
    accent = found.page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--accent').trim()")
    for name in ("sweep ms pruned", "errors after repair", "bar after repair", "memory after"):
        assert found.page.evaluate(f"(name) => ({MODEL})(name).glyph.line_color", name) in (accent, {"value": accent})
    found.page.emulate_media(media="print", color_scheme="dark")
    width, filtered = found.page.evaluate(ON_PAPER)
    assert width == pytest.approx(702, abs=1)  # A4 between its margins
    assert "invert(1)" in filtered
    found.page.emulate_media(media="screen", color_scheme="light")
    assert luminance(found.repainted("before", dark)) > 0.8
    found.page.close()


def test_print_is_dark_on_white_without_what_can_only_be_clicked(browser: Any, folder: Path) -> None:
    found = opened(browser, folder / "swept.html", "dark", "print")
    assert not found.page.is_visible("nav")
    assert not found.page.is_visible("#search")
    assert found.page.is_visible("#channels table")
    assert luminance(found.ground("before")) > 0.8
    ink = found.page.evaluate("getComputedStyle(document.body).color")
    assert max(map(int, re.findall(r"\d+", ink)[:3])) < 80
    found.page.close()


def luminance(colour: str) -> float:
    """Of #rrggbb, from 0 to 1."""
    return sum(int(colour[at : at + 2], 16) for at in (1, 3, 5)) / 765
