"""The blocks of code in README.md and docs/, found by a CommonMark parser, and what runs them.

    ```python     statements, which share their names with the other blocks of the page
    ```pycon      the same with prompts: what is printed must be what the page says
    ```sh         commands, each of which must succeed
    ```console    the same after "$ ": what they write must be what the page says

Commands run in this process: `reparam`, `tvmc` and `python -m reparam_compiler.fuse` by their entry points, others are refused.
"""

import contextlib
import doctest
import io
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from markdown_it import MarkdownIt

from reparam_compiler.commands import reparam
from reparam_compiler.tvmc import commands as tvmc

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LANGUAGES = ("python", "pycon", "sh", "console")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PROMPT = "$ "
NAME_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page. line: its first, counted from 0 (that of the fence from 1)."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Its page and the beginning of its code, which an edit elsewhere on the page leaves alone."""
        return f"{self.page}: {self.text.splitlines()[0].split('  ')[0][:NAME_LENGTH]}"

    @property
    def place(self) -> str:
        """For an editor to go to."""
        return f"{self.page}:{self.line + 1}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are code, in order.

    Raises ValueError for one of a language that is none of `LANGUAGES`, nor without one: it would be read and never run.
    """
    found, name = [], page.relative_to(ROOT).as_posix()
    for token in MarkdownIt().parse(page.read_text()):
        if token.type != "fence" or not token.info:
            continue
        assert token.map is not None
        if token.info not in LANGUAGES:
            raise ValueError(f"{name}:{token.map[0] + 1}: a block of {token.info!r}; expected one of {', '.join(LANGUAGES)}")
        found.append(Block(name, token.map[0] + 1, token.info, token.content))
    return found


def run(block: Block, names: dict[str, Any]) -> None:
    """Runs a block with the names of its page. Raises what its code raises; AssertionError where it says another thing."""
    if block.language == "python":
        code = compile("\n" * block.line + block.text, block.page, "exec")
        exec(code, names)
    elif block.language == "pycon":
        _run_session(block, names)
    else:
        for words, said in commands(block):
            code, found = _run_command(words)
            assert code == 0, f"{block.place}: {shlex.join(words)} ended with {code}: {found}"
            if block.language == "console":
                _check(said, found, f"{block.place}: {shlex.join(words)}")


def commands(block: Block) -> Iterator[tuple[list[str], str]]:
    """The words of each command, and what the block says that it writes.

    >>> [words for words, _ in commands(Block("p", 1, "sh", "reparam inspect a.onnx  # dry"))]
    [['reparam', 'inspect', 'a.onnx']]
    >>> list(commands(Block("p", 1, "console", "$ reparam inspect a.onnx\\nnothing\\n")))
    [(['reparam', 'inspect', 'a.onnx'], 'nothing\\n')]
    """
    is_session = block.language == "console"
    lines = iter(block.text.splitlines(keepends=True))
    typed, said = "", ""
    for line in lines:
        if is_session and not line.startswith(PROMPT):
            said += line
            continue
        yield from _typed(typed, said)
        typed, said = line.removeprefix(PROMPT), ""
        while typed.endswith("\\\n"):
            typed = typed[:-2] + next(lines)
    yield from _typed(typed, said)


def _typed(line: str, said: str) -> Iterator[tuple[list[str], str]]:
    words: list[str] = []
    for word in shlex.split(line, comments=True):
        if word == "&&":
            yield words, ""
            words = []
        else:
            words.append(word)
    if words:
        yield words, said


def _run_session(block: Block, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, names, block.place, block.page, block.line)
    test.globs = names  # a later block goes on with what this one named
    said: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


def _check(expected: str, found: str, where: str) -> None:
    checker = doctest.OutputChecker()
    if not checker.check_output(expected, found, OPTIONS):
        difference = checker.output_difference(doctest.Example("", expected), found, OPTIONS)
        raise AssertionError(f"{where}\n{difference}")


def _run_command(words: list[str]) -> tuple[int, str]:
    """The exit code, and what it wrote on both streams."""
    program, *rest = words
    wrote = io.StringIO()
    with contextlib.redirect_stdout(wrote), contextlib.redirect_stderr(wrote), mock.patch.object(sys, "argv", words):
        try:
            if program == "reparam":
                reparam.main()
            elif program == "tvmc":
                raise SystemExit(tvmc.main(rest))
            elif words[:2] == ["python", "-m"] and words[2].startswith("reparam_compiler."):
                with mock.patch.object(sys, "argv", words[2:]):
                    runpy.run_module(words[2], run_name="__main__")
            else:
                raise ValueError(f"{shlex.join(words)}: no way to run {program} in a test; say why in NOT_RUN")
        except SystemExit as ended:
            return int(ended.code or 0), wrote.getvalue()
    return 0, wrote.getvalue()
