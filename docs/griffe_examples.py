"""Shows the examples of docstrings as sessions: what begins with a prompt would be a quotation in Markdown.

mkdocs.yml names this file as an extension of griffe, which reads the docstrings for mkdocstrings.
"""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Puts a fence round every paragraph of a docstring that begins with a prompt."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls it for whatever it has read; the docstring is parsed later."""
        if obj.docstring is not None:
            obj.docstring.value = "\n\n".join(map(_fenced, obj.docstring.value.split("\n\n")))


def _fenced(paragraph: str) -> str:
    return f"```pycon\n{paragraph}\n```" if paragraph.startswith(">>> ") else paragraph
