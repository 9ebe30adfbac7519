"""Measures on devices far away: as many candidates at once as a tracker has devices of a key, each on one of them.

    Job --> an artifact: the rule's kernels and the candidate's, over one copy of the weights --> `answering`: pairs of times

A candidate whose device is lost, or does not come back, has another device once: it may have been the device's fault. What is
to be measured waits for a device, and for a tracker that is away, as long as `Rpc.wait`; then the search keeps what else was
measured meanwhile and ends, and goes on from there when it is called again. So it does after Ctrl-C.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from reparam_compiler.core.files import scratch_folder
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.rpc.address import Rpc
from reparam_compiler.lowering.rpc.device import PARTING, Device, Line, LostError, connect
from reparam_compiler.lowering.rpc.tracker import GivenUpError, known
from reparam_compiler.lowering.runtime.description import filled
from reparam_compiler.lowering.runtime.executable import Executable
from reparam_compiler.lowering.runtime.variant import Variant
from reparam_compiler.lowering.runtime.weights import Weight
from reparam_compiler.lowering.search.measuring import Job, Runnable
from reparam_compiler.lowering.search.pairs import Outcome, Repeats

JobT = TypeVar("JobT")
DEVICES = 2
"""On which a candidate is tried before its failure is one."""
LOOK = 0.2
"""Seconds between two looks for Ctrl-C."""


class Fleet:
    """Takes the place of a `Meter`."""

    def __init__(self, rpc: Rpc, repeats: Repeats) -> None:
        self.rpc, self.repeats = rpc, repeats
        self._given_up = threading.Event()
        self._taking = threading.Lock()
        self._lines: list[Line] = []
        self._idle: list[Line] = []
        self._held, self._most_held = 0, 0
        self._ended: BaseException | None = None

    @property
    def width(self) -> int:
        """How many devices it can have at once: those that are free, or as many as it just had, which come back in a moment.

        Raises: LoweringError where the tracker does not answer.
        """
        return max(1, self._most_held, known(self.rpc, self._given_up).free)

    def measure(self, jobs: Sequence[Job]) -> list[Outcome | None]:
        """What each took, or why it did not; None where it was not measured, for the reason that `check` gives."""
        return self.each(_compared, jobs)

    def each(self, work: Callable[[Device, JobT], Outcome], jobs: Sequence[JobT]) -> list[Outcome | None]:
        """What `work` gives for each on a device; None as `measure`.

        Raises: LoweringError where the tracker does not answer.
        """
        if not jobs or self._ended:
            return [None] * len(jobs)
        self._most_held = 0
        with ThreadPoolExecutor(max(1, known(self.rpc, self._given_up).servers)) as pool:
            made = list[Future[Outcome]]()
            try:
                for job in jobs:
                    made.append(pool.submit(self._tried, work, job))
                _wait(made)
            except BaseException as interrupt:  # noqa: BLE001 - Ctrl-C: what the threads wait for is ended, or they would be waited for
                self._ended = interrupt
                self.close()
            for each in made:
                each.cancel()
        failed = [each for each in made if each.cancelled() or each.exception()]
        self._ended = self._ended or next((each.exception() for each in failed if not each.cancelled()), None)
        found = [None if each in failed else each.result() for each in made]
        return found + [None] * (len(jobs) - len(made))

    def check(self) -> None:
        """Raises what ended the measurements: LoweringError where no device was left, or KeyboardInterrupt."""
        if self._ended:
            raise self._ended

    def close(self) -> None:
        """Ends its processes, and whatever waits for them."""
        self._given_up.set()
        for line in self._lines:
            line.close()

    def _tried(self, work: Callable[[Device, JobT], Outcome], job: JobT) -> Outcome:
        """On one device, and on another one where that is lost."""
        lost = ""
        for _ in range(DEVICES):
            line = self._line()
            try:
                connect(line, self.rpc, self.repeats.timeout + PARTING, self._given_up)
                with self._holding():
                    outcome = _outcome(work, Device(line, self.repeats.timeout), job)
                    line.disconnect()
                return outcome
            except LostError as found:
                if self._given_up.is_set():
                    raise GivenUpError from found
                lost = "running it took too long" if found.late else f"running it failed: {found}"
            finally:
                self._idle.append(line)
        return Outcome(failure=f"{lost}, on {DEVICES} devices")

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """Counts the devices that it has at once."""
        with self._taking:
            self._held += 1
            self._most_held = max(self._most_held, self._held)
        try:
            yield
        finally:
            with self._taking:
                self._held -= 1

    def _line(self) -> Line:
        """One that nobody has. Raises: GivenUpError once it was closed."""
        if self._given_up.is_set():
            raise GivenUpError
        with self._taking:
            if self._idle:
                return self._idle.pop()
            self._lines.append(line := Line())
            return line


def _wait(made: Sequence[Future[Outcome]]) -> None:
    """Until all are done, or one raised. It looks up now and then: a signal that comes just before a wait does not end it."""
    found = wait(made, LOOK, FIRST_EXCEPTION)
    while found.not_done and not any(each.exception() for each in found.done):
        found = wait(made, LOOK, FIRST_EXCEPTION)


def _outcome(work: Callable[[Device, JobT], Outcome], device: Device, job: JobT) -> Outcome:
    """What came of it on a device. Raises: LostError where that is lost."""
    try:
        return work(device, job)
    except LostError:
        raise
    except LoweringError as refusal:
        return Outcome(failure=f"running it failed: {refusal}")


def _compared(device: Device, job: Job) -> Outcome:
    with scratch_folder() as folder:
        path = folder / "job.tar"
        _both(job).save(path)
        content = np.frombuffer(path.read_bytes(), np.uint8)
    how = {"threads": job.threads, **asdict(job.repeats)}
    found, _ = device.ask("compare", [content, *(filled(spec, "random") for spec in job.inputs)], **how)
    return Outcome(tuple(found["seconds"]), tuple(found["beside"]))


def _both(job: Job) -> Executable:
    """The rule's kernels, where they are others, and the candidate's."""
    arrays: dict[str, Any] = {}

    def variant(runnable: Runnable) -> Variant:
        for path, _ in runnable.weights:
            if path not in arrays:
                arrays[path] = np.load(path)
        weights = tuple(Weight(arrays[path], packing, (), "") for path, packing in runnable.weights)
        return Variant(job.target, job.inputs, (), library=Path(runnable.library).read_bytes(), weights=weights)

    return Executable(tuple(variant(each) for each in (job.rule, job.candidate) if each is not None))
