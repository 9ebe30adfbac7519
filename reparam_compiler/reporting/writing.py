"""A page as a file: HTML, JSON or text, by its suffix."""

import importlib.util
import io
import os
from pathlib import Path

from reparam_compiler.core.files import check_place, written_whole
from reparam_compiler.core.packages import EXTRAS, install_line
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.reporting.page import Page

SUFFIXES = (".html", ".json", ".txt")
_WIDTH = 160
"""Columns of a text file."""


def check_report(path: str | os.PathLike[str] | None) -> None:
    """Asks before minutes of work what would fail after them; nothing where no report is wanted.

    Raises UnsupportedModelError for another suffix, or where a package is missing that draws; OSError as `check_place`.
    """
    if path is None:
        return
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UnsupportedModelError(f"{path}: found the suffix {suffix!r}; expected {', '.join(SUFFIXES)}")
    missing = [name for name in EXTRAS["report"] if importlib.util.find_spec(name) is None] if suffix == ".html" else []
    if missing:
        raise UnsupportedModelError(f"{path}: HTML needs {' and '.join(missing)}, not installed here: {install_line('report')}")
    check_place(path)


def write_page(page: Page, path: str | os.PathLike[str]) -> None:
    """Writes a page, whole or not at all; raises as `check_report`."""
    check_report(path)
    with written_whole(path) as part:
        part.write_text(_TEXTS[Path(path).suffix](page), encoding="utf-8")


def _html(page: Page) -> str:
    from reparam_compiler.reporting.html import to_html

    return to_html(page)


def _json(page: Page) -> str:
    from reparam_compiler.reporting.schema import to_json

    return to_json(page)


def _text(page: Page) -> str:
    from rich.console import Console

    from reparam_compiler.reporting.terminal import print_page

    text = io.StringIO()
    print_page(Console(file=text, width=_WIDTH), page)
    return text.getvalue()


_TEXTS = {".html": _html, ".json": _json, ".txt": _text}
