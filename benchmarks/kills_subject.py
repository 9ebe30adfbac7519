"""What `kills` kills: commands in processes of their own, and a folder in which `tvmc tune` searches a small net."""

import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import reparam_compiler
from benchmarks.op_one_onnx import normal
from reparam_compiler.core.files import SCRATCH
from reparam_compiler.lowering.search.records import CONVS, REST, SCHEDULES, WORKLOADS, read_convs, read_rest
from reparam_compiler.tvmc.commands import main as tvmc
from tests.support.onnx_models import model_of

PATIENCE = 600.0
"""Seconds that a run may take, and its processes to end, on a machine that others use."""
SERVER = multiprocessing.get_context("forkserver")
"""Forks searches from a process that has imported what they need: a fresh one does little else for most of its life."""
SERVER.set_forkserver_preload(
    [
        __name__,
        "benchmarks.kills_writers",
        "reparam_compiler.api.compiling",
        "reparam_compiler.lowering.search.tuning",
        "xgboost",
    ]
)
ELSEWHERE = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A command in a process group of its own. out: the file of what it writes."""

    process: ForkServerProcess
    out: Path

    @property
    def group(self) -> int:
        return self.process.pid or 0

    def code(self) -> int | None:
        """That with which it ended; None while it goes on."""
        return self.process.exitcode

    def ended(self) -> int:
        """The same, once there is one. Raises TimeoutError where there is none in time."""
        self.process.join(PATIENCE)
        if (code := self.process.exitcode) is None:
            raise TimeoutError(f"a command went on for more than {PATIENCE:.0f} s")
        return code

    def lines(self) -> list[str]:
        """What it wrote so far."""
        return self.out.read_text().splitlines()

    def said(self) -> list[str]:
        """For a person, without what differs from one machine to another."""
        lines = (line for line in self.lines() if not line.startswith("{"))
        return list(dict.fromkeys(re.sub(r"/\S*/", "", line) for line in lines))

    def waited(self, size: Callable[[], object], until: float, writes: int | None) -> float:
        """Seconds of it at its moment: `until`, or where `size` changed more often than `writes`."""
        began, last, seen = time.monotonic(), size(), 0
        while self.code() is None and time.monotonic() - began < (PATIENCE if writes is not None else until):
            time.sleep(0.002)
            if writes is not None and (now := size()) != last:
                last, seen = now, seen + 1
                if seen > writes:
                    break
        return time.monotonic() - began

    def killed(self, *, group: bool) -> bool:
        """Kills it, or with it all processes that it started; whether one of them lives on, some seconds later."""
        (os.killpg if group else os.kill)(self.group, signal.SIGKILL)
        self.ended()
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                os.killpg(self.group, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.05)
        return True


@contextlib.contextmanager
def started(
    main: Callable[[Sequence[str]], int], words: Sequence[object], temporary: Path, room: int = resource.RLIM_INFINITY
) -> Iterator[Run]:
    """A command that runs. temporary: where its temporary files go. room: bytes that no file of it may exceed."""
    with tempfile.NamedTemporaryFile("r") as out:
        given = (main, tuple(map(str, words)), out.name, str(temporary), room)
        process = SERVER.Process(target=_commanded, args=given)
        process.start()
        try:
            yield Run(process, Path(out.name))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()


def _commanded(main: Callable[[Sequence[str]], int], words: Sequence[str], out: str, temporary: str, room: int) -> None:
    """In a process of its own: a program with these words."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    sys.exit(main(words))


class Subject:
    """The net, the folder that it is tuned in, and one for temporary files."""

    def __init__(self, work: Path, trials: int) -> None:
        """trials: of each run."""
        self.folder, self.temporary, self.trials = work / "records", work / "tmp", trials
        self.temporary.mkdir()
        self.model = _model()
        self._path = work / "net.onnx"
        onnx.save(self.model, self._path)
        self._x = normal(1, 16, 24, 20)
        session = onnxruntime.InferenceSession(self.model.SerializeToString())
        (self._expected,) = session.run(None, {"x": self._x})

    def tuning(
        self, trials: int, *, rest: bool = True, room: int = resource.RLIM_INFINITY
    ) -> contextlib.AbstractContextManager[Run]:
        """A search that goes on. rest: of what has no recipe too. room: as for `started`."""
        tasks = "conv,pool" if rest else "conv"
        words = ("tune", self._path, "-o", self.folder, "--trials", trials, "--repeat", 2, "--tasks", tasks, "--json")
        return started(tvmc, words, self.temporary, room)

    def records(self) -> Counter[str]:
        """Everything that is read of the folder."""
        schedules = (f"{name} {line!r}" for name in (WORKLOADS, SCHEDULES) for line in self._lines(name) if is_json(line))
        return Counter([*map(repr, read_convs(self.folder)), *map(repr, read_rest(self.folder)), *schedules])

    def torn(self) -> tuple[int, int]:
        """Lines that are none, and those of them that are not the last ones of their files."""
        broken = [[not is_json(line) for line in self._lines(name)] for name in (CONVS, REST, WORKLOADS, SCHEDULES)]
        return sum(map(sum, broken)), sum(sum(each[:-1]) for each in broken)

    def counted(self) -> int:
        """The records that count towards the trials."""
        points = {(each.shape, each.point, each.target) for each in read_convs(self.folder) if each.where == "alone"}
        return sum(target != ELSEWHERE for *_, target in points) + len(list(filter(is_json, self._lines(SCHEDULES))))

    def right(self) -> bool:
        """Whether the net compiled with the folder computes what ONNX Runtime does."""
        database = self.folder if self.counted() else None
        (found,) = reparam_compiler.compile(self.model, database=database).run(self._x)
        return bool(np.allclose(found, self._expected, rtol=1e-4, atol=1e-4))

    def size(self) -> int:
        """Bytes of the records."""
        return sum(path.stat().st_size for path in self.folder.glob("*.json*"))

    def left(self) -> int:
        """Temporary folders of ours."""
        return len(list(self.temporary.glob(f"*{SCRATCH}*")))

    def _lines(self, name: str) -> list[bytes]:
        path = self.folder / name
        return path.read_bytes().splitlines() if path.is_file() else []


def _model() -> onnx.ModelProto:
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], pads=[1] * 4),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["r"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["r", "b"], ["y"], pads=[1] * 4),
    ]
    weights = {"a": 0.1 * normal(16, 16, 3, 3), "b": 0.1 * normal(32, 16, 3, 3)}
    return model_of(nodes, {"x": (1, 16, 24, 20)}, ["y"], weights)


def is_json(line: bytes) -> bool:
    """Whether a line is whole."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
