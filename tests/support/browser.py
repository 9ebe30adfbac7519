"""Pages in a real Chromium: opened without network, driven as people do, and asked what they show."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

PATIENCE = 120_000
"""Milliseconds that whatever the browser is asked for may take, on a machine that does other things too."""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
POSITION = """([side, key]) => {
    const models = Bokeh.documents.flatMap((doc) => [...doc._all_models.values()]);
    const figure = models.find((model) => model.name === side), boxes = models.find((model) => model.name === `${side} boxes`);
    const {x, y, tip} = boxes.data_source.data, at = tip.findIndex((text) => text.split(/[\\n:]/)[0] === key);
    const view = Bokeh.index.find_one_by_id(figure.id), frame = (view.frame_view ?? view).el.getBoundingClientRect();
    const {x_range, y_range} = figure;
    return [frame.left + (x[at] - x_range.start) / (x_range.end - x_range.start) * frame.width,
            frame.top + (y_range.end - y[at]) / (y_range.end - y_range.start) * frame.height];
}"""
"""Where a node or a folded block stands on the screen."""
MODEL = "(name) => Bokeh.documents.flatMap((doc) => [...doc._all_models.values()]).find((model) => model.name === name)"


class Shown:
    """A page in the browser. said: its errors and warnings on the console; asked: what it loaded."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self.asked.append(request.url))

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.type}: {message.text}")

    def click(self, side: str, key: str, times: int = 1) -> None:
        """A click, or a double one, on a node or a folded block."""
        self.page.mouse.click(*self.position(side, key), click_count=times)

    def position(self, side: str, key: str) -> list[float]:
        self.page.locator("#canvas").scroll_into_view_if_needed()
        found: list[float] = self.page.evaluate(POSITION, [side, key])
        return found

    def drawn(self, side: str, part: str = "boxes") -> int:
        """How many marks there are."""
        count: int = self.page.evaluate(f"(name) => ({MODEL})(name).data_source.data.x.length", f"{side} {part}")
        return count

    def ground(self, side: str) -> str:
        """The colour of a canvas."""
        colour: str = self.page.evaluate(f"(name) => ({MODEL})(name).background_fill_color", side)
        return colour

    def repainted(self, side: str, before: str) -> str:
        """The colour of a canvas once it is another one: a page hears of its medium in a later frame."""
        self.page.wait_for_function(f"([name, before]) => ({MODEL})(name).background_fill_color != before", arg=[side, before])
        return self.ground(side)

    @property
    def detail(self) -> str:
        return str(self.page.inner_text("#detail"))

    def press(self, key: str) -> None:
        self.page.locator("#canvas").press(key)


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A browser with a new profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(folder),
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            viewport={"width": 1400, "height": 1000},
            offline=True,
            timeout=PATIENCE,
        )
        context.set_default_timeout(PATIENCE)
        yield context
        context.close()


def opened(
    context: Any, path: Path, scheme: Literal["light", "dark"] = "light", media: Literal["screen", "print"] = "screen"
) -> Shown:
    """A page, once it can be used."""
    shown = Shown(context.new_page())
    shown.page.emulate_media(color_scheme=scheme, media=media)
    shown.page.goto(path.as_uri())
    shown.page.wait_for_function("document.documentElement.dataset.ready")
    return shown
