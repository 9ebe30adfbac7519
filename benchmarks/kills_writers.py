"""Commands that write over files, ended at random moments: what is there is the old file or the new one, and whole.

Two nets of other weights take turns, each written over what came of the other. A model is run, and gives what one of the two
does, else it is torn; a page or a manifest can be read. Then the same command runs to its end, and what lies beside its files
is counted. Weights of an ONNX model in a second file stay when the model is written over: a copy may need them.
"""

import contextlib
import functools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import reparam_compiler
from benchmarks.kills_subject import is_json, started
from reparam_compiler.__main__ import main
from reparam_compiler.frontends.onnx import io as onnx_io
from reparam_compiler.models.io import load_model, save_model
from reparam_compiler.tvmc.failing import INTERRUPTED
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from tests.support.onnx_models import run_on
from tests.support.reparam_runs import Net

SHAPE = (2, 3, 9, 7)
CHANGES = 6
"""Changes of the folders after which a command is ended at most."""
NETS = ("one", "other")


@dataclass(frozen=True, slots=True)
class Writer:
    """A command. words: of {net}, its model without a suffix, and {out}, the folder. beside: weights go into a second file."""

    name: str
    words: str
    outputs: tuple[str, ...]
    beside: bool = False


WRITERS = (
    Writer("fuse, ONNX", "fuse {net}.onnx -o {out}/x.onnx --report {out}/x.html", ("x.onnx", "x.html")),
    Writer("fuse, ONNX, weights in a second file", "fuse {net}.onnx -o {out}/x.onnx", ("x.onnx",), beside=True),
    Writer("fuse, torch.export", "fuse {net}.pt2 -o {out}/x.pt2 --report {out}/x.json", ("x.pt2", "x.json")),
    Writer(
        "prune, ONNX, weights in a second file",
        "prune {net}.onnx --ratio 0.5 --round-to 1 -o {out}/x.onnx --manifest {out}/x.json",
        ("x.onnx", "x.json"),
        beside=True,
    ),
    Writer("compile, archive", "compile {net}.onnx -o {out}/x.tar", ("x.tar",)),
    Writer("compile, library", "compile {net}.onnx -o {out}/x.so", ("x.so",)),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left that was ended.

    seconds: after which it was. by: the signal. at_a_write, group: as in `kills`.
    model: which one is there. torn: other outputs that cannot be read. left: files beside the outputs, temporary ones too;
        after: those that the next run did not remove.
    code: the exit code. lines: that it said on stderr or stdout.
    """

    writer: str
    seconds: float
    by: str
    at_a_write: bool
    group: bool
    model: Literal["old", "new", "torn"]
    torn: int
    left: int
    after: int
    code: int
    lines: list[str]

    @property
    def sound(self) -> bool:
        whole = self.model != "torn" and not self.torn and not self.after
        words = [line for line in self.lines if line.startswith("reparam: ")]
        clear = (self.code, len(words), self.left) == (INTERRUPTED, 1, 0)
        return whole and (self.by == "SIGKILL" or clear)


def reparam(words: Sequence[str], *, beside: bool) -> int:
    """The program, in this process. beside: the weights of ONNX models go into a second file, however few they are."""
    if beside:
        onnx_io.ONE_FILE = 0
    sys.argv = ["reparam", *words]
    main()
    return 0


class Desk:
    """The nets, a folder for the outputs of each writer, and one for temporary files."""

    def __init__(self, work: Path) -> None:
        self._work, self.temporary = work, work / "tmp"
        self.temporary.mkdir()
        self._x = torch.from_numpy(np.random.default_rng(0).standard_normal(SHAPE).astype("float32"))
        for seed, name in enumerate(NETS):
            torch.manual_seed(seed)
            model = randomise_batch_norm(Net()).eval()
            for suffix in (".onnx", ".pt2"):
                save_model(model, work / f"{name}{suffix}", example_inputs=(self._x,))
        self._wanted: dict[str, dict[str, Any]] = {}
        self._there = dict[str, str]()

    def prepare(self, writer: Writer) -> float:
        """Both nets written, the second over the first; seconds of a whole run."""
        folder = self._folder(writer)
        folder.mkdir()
        self._wanted[writer.name] = {}
        for net in NETS:
            with self._writing(writer, net) as run:
                seconds = run.waited(lambda: None, float("inf"), None)
                if run.ended():
                    raise SystemExit("\n".join(run.lines()))
            self._wanted[writer.name][net] = self._computed(folder / writer.outputs[0])
        self._there[writer.name] = NETS[-1]
        return seconds

    def ended(self, writer: Writer, by: signal.Signals, until: float, writes: int | None, *, group: bool) -> Ended | None:
        """A command that was ended, and then run to its end; None where it had ended before."""
        folder, old = self._folder(writer), self._there[writer.name]
        self._there[writer.name] = new = next(net for net in NETS if net != old)
        known = self._weights(folder)
        for path in folder.iterdir():
            if path.name not in {*writer.outputs, *known}:
                path.unlink()
        with self._writing(writer, new) as run:
            seconds = run.waited(self._sizes, until, writes)
            if run.code() is not None:
                return None
            try:
                (os.killpg if group else os.kill)(run.group, by)
            except ProcessLookupError:
                return None
            code, lines = run.ended(), run.lines()
        model, left = self._which(writer, old), self._strangers(writer, known)
        known |= self._weights(folder)  # of the new one where it is in place: what is replaced keeps its weights
        torn = sum(not _is_whole(folder / name) for name in writer.outputs[1:])
        with self._writing(writer, new) as run:
            run.ended()
        after = self._strangers(writer, known)
        return Ended(writer.name, round(seconds, 2), by.name, writes is not None, group, model, torn, left, after, code, lines)

    def _folder(self, writer: Writer) -> Path:
        return self._work / str(WRITERS.index(writer))

    def _writing(self, writer: Writer, net: str) -> Any:
        words = writer.words.format(net=self._work / net, out=self._folder(writer)).split()
        return started(functools.partial(reparam, beside=writer.beside), [*words, "-q"], self.temporary)

    def _sizes(self) -> dict[str, int]:
        """Of all files."""
        found = dict[str, int]()
        for folder, _, names in os.walk(self._work):
            for path in (os.path.join(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    found[path] = os.stat(path).st_size
        return found

    def _weights(self, folder: Path) -> set[str]:
        """The files in which the ONNX model of a folder has its weights."""
        return onnx_io.locations(folder / "x.onnx") if (folder / "x.onnx").exists() else set()

    def _strangers(self, writer: Writer, known: set[str]) -> int:
        folder = self._folder(writer)
        there = {path.name for path in folder.iterdir()} - {*writer.outputs, *known, *self._weights(folder)}
        return len(there) + len(list(self.temporary.iterdir()))

    def _which(self, writer: Writer, old: str) -> Literal["old", "new", "torn"]:
        try:
            found = self._computed(self._folder(writer) / writer.outputs[0])
        except Exception:  # noqa: BLE001 - whatever it is, the file is none
            return "torn"
        same = [net for net, wanted in self._wanted[writer.name].items() if np.allclose(found, wanted, rtol=1e-4, atol=1e-4)]
        return "torn" if len(same) != 1 else "old" if same == [old] else "new"

    def _computed(self, path: Path) -> Any:
        """What a model gives."""
        if path.suffix == ".onnx":
            return run_on(path, self._x)[0]
        if path.suffix == ".pt2":
            return load_model(path).module()(self._x).detach().numpy()
        return reparam_compiler.load(path).run(self._x.numpy())[0]


def _is_whole(path: Path) -> bool:
    """Whether a page or a manifest can be read."""
    text = path.read_text()
    return text.rstrip().endswith("</html>") if path.suffix == ".html" else is_json(text.encode())


def ends(desk: Desk, kills: int, interrupts: int, seed: int, seconds: float) -> Iterator[Ended]:
    """So many kills, interrupts between them, of one writer after the other; half anywhere, half where files had changed.

    seconds: after which none begins.
    """
    chance, began = random.Random(seed), time.monotonic()
    whole = {writer: desk.prepare(writer) for writer in WRITERS}
    of_each = ((signal.SIGKILL, kills), (signal.SIGINT, interrupts))
    for _, index, by in sorted((index / count, index, by) for by, count in of_each for index in range(count)):
        writer, at_a_write = WRITERS[index % len(WRITERS)], index // len(WRITERS) % 2 == 1
        found = None
        while found is None:
            if time.monotonic() > began + seconds:
                return
            until, writes = chance.random() * whole[writer], chance.randrange(CHANGES) if at_a_write else None
            found = desk.ended(writer, by, until, writes, group=by == signal.SIGINT or chance.random() < 0.5)
        yield found


def written(found: Sequence[Ended]) -> str:
    """The body of the page."""
    columns = ["killed", "at a write", "of the whole group", "old", "new", "torn", "files left", "left after the next run"]
    lines = [f"| command | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    kills = [each for each in found if each.by == "SIGKILL"]
    for name in (*(writer.name for writer in WRITERS), "all"):
        some = [each for each in kills if name in (each.writer, "all")]
        models = [sum(each.model == which for each in some) for which in ("old", "new")]
        torn = sum(each.torn or each.model == "torn" for each in some)
        counts = [len(some), sum(each.at_a_write for each in some), sum(each.group for each in some), *models, torn]
        cells = [*counts, sum(each.left for each in some), sum(each.after for each in some)]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    stopped = [each for each in found if each.by == "SIGINT"]
    ends = Counter((each.code, *each.lines) for each in stopped)
    lines += ["", "## Ctrl-C", "", "| times | exit code | what it said |", "|---|---|---|"]
    lines += [f"| {count} | {code} | {' / '.join(said)} |" for (code, *said), count in ends.most_common()]
    torn, left = sum(not each.sound for each in stopped), sum(each.left for each in stopped)
    lines += ["", f"{len(stopped)} interrupts, {torn} of them not sound; files left: {left}."]
    return "\n".join(lines) + "\n"
