"""What mkdocs shows beside docs/: measurements, examples, findings; so links of the pages hold on the site as in the checkout.

    ../benchmarks/results/lower-cpu.md   ->   repository/benchmarks/results/lower-cpu.md
    ../examples/serve.py                 ->   repository/examples/serve.py.md, as a block of code

mkdocs.yml names this file as a hook.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SHOWN = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/results/*.md", "examples/*.*", "findings/*.sh")
LANGUAGES = {".py": "python", ".sh": "sh", ".cc": "cpp"}
FOLDER = "repository/"
LINK = re.compile(r"(?<=\]\()(?P<path>[\w./-]+)(?P<anchor>#[\w-]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each file of the repository that pages refer to."""
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name, text = path.relative_to(ROOT).as_posix(), path.read_text()
            if path.suffix != ".md":
                text = f"# {path.name}\n\n````{LANGUAGES[path.suffix]}\n{text}````\n"
            files.append(File.generated(config, FOLDER + page_of(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turns links by paths in the repository into links by paths on the site."""
    here = page.file.src_uri
    written_at = here.removeprefix(FOLDER) if here.startswith(FOLDER) else f"docs/{here}"

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(written_at), link["path"]))
        if target == "docs/adr":
            target = "docs/adr/0001-ids-not-references.md"
        place = target.removeprefix("docs/") if target.startswith("docs/") else FOLDER + page_of(target)
        return posixpath.relpath(place, posixpath.dirname(here)) + (link["anchor"] or "")

    return LINK.sub(on_site, markdown)


def page_of(name: str) -> str:
    """The name of the page that shows a file."""
    return name if name.endswith(".md") else f"{name}.md"
