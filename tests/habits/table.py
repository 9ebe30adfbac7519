"""What came of the ring, kept as text: `tests/goldens/habits`, and the table of `docs/habits.md` that is made of it.

[view_by_size]
export                +++++++++       one sign for each verb, in the order of `VERBS`
  prune: …                            why a cell is not right, or what was left as it was

+ right    r refused    - does not apply    x failed    . not run
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.habits.kinds import KINDS
from tests.habits.parts import HABITS
from tests.habits.ring import VERBS, Outcome, Word

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "habits"
PAGE = ROOT / "docs" / "habits.md"
SIGNS: Mapping[Word, str] = {"right": "+", "refused": "r", "n/a": "-", "failed": "x"}
WORDS = {sign: word for word, sign in SIGNS.items()}
Cells = dict[tuple[str, str, str], Outcome]
"""Outcomes by habit, kind and verb."""


def read() -> Cells:
    """What is kept of all habits."""
    found: Cells = {}
    for path in sorted(GOLDENS.glob("*.txt")):
        found |= _parsed(path.read_text(encoding="utf-8"))
    return in_order({key: outcome for key, outcome in found.items() if key[0] in HABITS})


def in_order(cells: Cells) -> Cells:
    """The cells in the order of the habits, the kinds and the verbs."""
    habits, kinds, verbs = [*HABITS], [*KINDS], [*VERBS]
    return dict(
        sorted(cells.items(), key=lambda cell: (habits.index(cell[0][0]), kinds.index(cell[0][1]), verbs.index(cell[0][2])))
    )


def _parsed(text: str) -> Cells:
    found: Cells = {}
    habit = kind = ""
    for line in text.splitlines():
        if line.startswith("["):
            habit = line.strip("[]")
        elif line.startswith("  "):
            verb, _, said = line.strip().partition(": ")
            found[habit, kind, verb] = Outcome(found[habit, kind, verb].word, said)
        elif line:
            kind, signs = line.rsplit(maxsplit=1)
            found |= {(habit, kind, v): Outcome(WORDS[s]) for v, s in zip(VERBS, signs, strict=True) if s in WORDS}
    return found


def write(cells: Cells) -> None:
    """Keeps them, a file for each group, and writes the page."""
    cells = in_order(cells)
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for group in dict.fromkeys(habit.group for habit in HABITS.values()):
        names = [name for name, habit in HABITS.items() if habit.group == group]
        (GOLDENS / f"{group}.txt").write_text("\n".join(_text(name, cells) for name in names), encoding="utf-8")
    PAGE.write_text(page(cells), encoding="utf-8")


def _text(name: str, cells: Cells) -> str:
    lines = [f"[{name}]"]
    for kind in KINDS:
        found = {verb: cells[name, kind, verb] for verb in VERBS if (name, kind, verb) in cells}
        lines.append(f"{kind:<20}{_signs(found)}")
        lines += [f"  {verb}: {outcome.text}" for verb, outcome in found.items() if outcome.text]
    return "\n".join(lines) + "\n"


def _signs(found: Mapping[str, Outcome]) -> str:
    return "".join(SIGNS[found[verb].word] if verb in found else "." for verb in VERBS)


def page(cells: Cells) -> str:
    """docs/habits.md."""
    counts = Counter(outcome.word for outcome in cells.values())
    total = len(HABITS) * len(KINDS) * len(VERBS)
    lines = [
        HEAD.format(
            habits=len(HABITS),
            kinds=", ".join(KINDS),
            run=f"{len(cells):,}",
            total=f"{total:,}",
            **{word.replace("/", ""): f"{counts[word]:,}" for word in SIGNS},
        )
    ]
    for group in dict.fromkeys(habit.group for habit in HABITS.values()):
        lines += ["", f"## {group}", "", "| habit | " + " | ".join(VERBS) + " |", "|---|" + "---|" * len(VERBS)]
        for name, habit in HABITS.items():
            if habit.group == group:
                row = [f"`{_column(name, verb, cells)}`" for verb in VERBS]
                lines.append(f"| {habit.about.replace('|', chr(92) + '|')} | " + " | ".join(row) + " |")
    lines += ["", "## What is refused", "", REFUSED, "", *_reasons(cells, "refused")]
    lines += ["", "## What fails", "", *(_reasons(cells, "failed") or ["Nothing."])]
    return "\n".join(lines) + "\n"


def _column(name: str, verb: str, cells: Cells) -> str:
    return "".join(SIGNS[cells[key].word] if (key := (name, kind, verb)) in cells else "." for kind in KINDS)


def _reasons(cells: Cells, word: Word) -> list[str]:
    """A line for each habit and reason, with the verbs that gave it."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for (name, _, verb), outcome in cells.items():
        if outcome.word == word:
            found.setdefault((name, _shown(outcome.text)), Counter())[verb] += 1
    return [f"- `{name}` ({', '.join(verbs)}): {text}" for (name, text), verbs in found.items()]


def _shown(text: str) -> str:
    text = re.sub(r"([<>*_|])", r"\\\1", text)
    return text if len(text) <= 200 else f"{text[:200]}…"


HEAD = """# Habits

How models are written, trained and shipped in practice: {habits} small models (`tests/habits/`), each one habit, through every
verb and every kind of model. This page is written by `make habits`; a test holds that it is what `tests/goldens/habits` says.

A cell has a sign for each kind, in this order: {kinds}.

| sign | | cells |
|---|---|---|
| `+` | right: what came computes what it should (a pruned model its masked reference), also at another batch | {right} |
| `r` | refused by a typed error or in the report, with the reason | {refused} |
| `-` | does not apply: the exporter refuses the model, or the verb takes no model of the kind | {na} |
| `x` | failed | {failed} |
| `.` | not run | {run} of {total} were |"""

REFUSED = "One line for each habit and reason; the goldens have them by kind."
