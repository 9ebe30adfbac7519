"""A fleet of any size is kept busy, and what it measured is kept, whatever ends the search: devices are pretended here."""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.rpc.address import Rpc
from reparam_compiler.lowering.rpc.device import LostError
from reparam_compiler.lowering.rpc.tracker import GivenUpError, Known
from reparam_compiler.lowering.search import fleet as fleets
from reparam_compiler.lowering.search import net_search
from reparam_compiler.lowering.search.asked import SearchOptions, check_search
from reparam_compiler.lowering.search.fleet import Fleet
from reparam_compiler.lowering.search.function_trials import FunctionTrials
from reparam_compiler.lowering.search.in_net import Contest
from reparam_compiler.lowering.search.measuring import Builders, Kernels, without_intrinsics
from reparam_compiler.lowering.search.net_search import NetSearch
from reparam_compiler.lowering.search.pairs import Outcome, Repeats
from reparam_compiler.lowering.search.planner import BATCH
from reparam_compiler.lowering.search.records import read_convs
from reparam_compiler.lowering.search.rest import Generic, functions_of
from reparam_compiler.lowering.search.trials import Batch, Bench
from tests.support import instant_trials
from tests.support.onnx_models import convs_and_pool

pytestmark = [pytest.mark.tvm, pytest.mark.usefixtures("one_process")]
PATIENCE = 60.0
DEVICES = 12
DONE = Outcome((1.0,))
CONVS = ["conv_3x3_8_12_at_6x5", "conv_3x3_3_8_at_8x7"]


class PretendedLine:
    """A line to no process."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def disconnect(self) -> None:
        """Has nothing to give back."""

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fleet]:
    """Makes a fleet of so many devices, of which the tracker lends some and then none any more."""

    def made(devices: int, loans: float = float("inf")) -> Fleet:
        lent = itertools.count(1)

        def connect(*_: Any) -> None:
            if next(lent) > loans:
                raise LoweringError("no device became free")

        monkeypatch.setattr(fleets, "Line", PretendedLine)
        monkeypatch.setattr(fleets, "known", lambda *_: Known(devices, devices, ()))
        monkeypatch.setattr(fleets, "connect", connect)
        return Fleet(Rpc("127.0.0.1:1", "pretended"), Repeats(1, 1, 0, PATIENCE))

    return made


def test_every_device_has_a_point_at_once(
    pretended: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch waits until all of it is being measured."""
    fleet, batches = pretended(DEVICES), list[int]()

    class Together(instant_trials.InstantTrials):
        def measure(self, given: Sequence[Batch]) -> list[Outcome | None]:
            found = super().measure(given)
            barrier = threading.Barrier(len(found))
            batches.append(len(found))
            return fleet.each(lambda _, outcome: (barrier.wait(PATIENCE), outcome)[1], found)

    monkeypatch.setattr(net_search, "Trials", Together)
    monkeypatch.setattr(NetSearch, "_fleet", fleet)
    monkeypatch.setattr(Contest, "rest_share", lambda _: 0.0)
    result = searched(tmp_path, 2 + 2 * DEVICES + 1)
    assert batches == [2, DEVICES, DEVICES, 1]  # the rules' points of both convs first
    assert (result.measured, result.failed) == (sum(batches), 0)


def test_a_fleet_is_as_wide_as_what_is_free_or_as_what_it_just_had(
    pretended: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, all_there = pretended(DEVICES), threading.Barrier(3)
    assert fleet.width == DEVICES
    monkeypatch.setattr(fleets, "known", lambda *_: Known(DEVICES, 0, ()))  # they come back in a moment
    assert fleet.width == 1
    assert fleet.each(lambda *_: (all_there.wait(PATIENCE), DONE)[1], range(3)) == [DONE] * 3
    assert fleet.width == 3


def test_what_was_measured_before_the_last_device_was_lost_is_given(pretended: Callable[..., Fleet]) -> None:
    fleet = pretended(1, loans=4)
    assert fleet.each(lambda *_: DONE, range(6)) == [DONE] * 4 + [None] * 2
    with pytest.raises(LoweringError, match="no device became free"):
        fleet.check()
    assert fleet.each(lambda *_: DONE, range(2)) == [None] * 2


def test_a_measurement_that_goes_on_when_another_finds_no_device_is_waited_for(pretended: Callable[..., Fleet]) -> None:
    fleet, others_are_over = pretended(2, loans=1), threading.Event()
    threading.Timer(0.3, others_are_over.set).start()
    found = fleet.each(lambda *_: (others_are_over.wait(PATIENCE), DONE)[1], range(3))
    assert (found.count(DONE), found.count(None)) == (1, 2)  # whichever had the device


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Ctrl-C to this process; the processes of xdist ignore it otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_gives_what_was_measured_and_waits_for_nothing(
    pretended: Callable[..., Fleet], ctrl_c: Callable[[], None]
) -> None:
    fleet, done = pretended(2), threading.Semaphore(0)

    def work(device: Any, job: int) -> Outcome:
        if job < 3:
            done.release()
            return DONE
        if job == 3:
            assert all(done.acquire(timeout=PATIENCE) for _ in range(3))
            ctrl_c()
        device._line.closed.wait(PATIENCE)
        raise LostError("it was closed")

    assert fleet.each(work, range(6)) == [DONE] * 3 + [None] * 3
    with pytest.raises(KeyboardInterrupt):
        fleet.check()


def test_ctrl_c_before_every_point_is_handed_out_waits_for_nothing(pretended: Callable[..., Fleet]) -> None:
    fleet = pretended(2)

    class Interrupted(list[int]):
        def __iter__(self) -> Iterator[int]:
            yield 0
            raise KeyboardInterrupt

    def work(device: Any, _: int) -> Outcome:
        device._line.closed.wait(PATIENCE)
        raise LostError("it was closed")

    assert fleet.each(work, Interrupted(range(3))) == [None] * 3
    with pytest.raises(KeyboardInterrupt):
        fleet.check()


def test_what_is_closed_meanwhile_is_given_up(pretended: Callable[..., Fleet]) -> None:
    fleet = pretended(1)
    fleet.close()
    assert fleet.each(lambda *_: DONE, range(2)) == [None] * 2
    with pytest.raises(GivenUpError):
        fleet.check()


@pytest.mark.parametrize("ended", [LoweringError("no device became free"), KeyboardInterrupt()])
def test_a_search_keeps_every_finished_measurement_before_it_ends(
    ended: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first batch behind the rules' points only every other one has an outcome."""

    class Lost:
        width, rpc, ended = 1, Rpc("127.0.0.1:1", "pretended"), False

        def check(self) -> None:
            if self.ended:
                raise ended

    class HalfOfThem(instant_trials.InstantTrials):
        def measure(self, given: Sequence[Batch]) -> list[Outcome | None]:
            found = super().measure(given)
            lost.ended = len(found) == BATCH
            return [None if lost.ended and place % 2 else outcome for place, outcome in enumerate(found)]

    lost, kept = Lost(), 2 + BATCH // 2
    monkeypatch.setattr(net_search, "Trials", HalfOfThem)
    monkeypatch.setattr(NetSearch, "_fleet", lost)
    monkeypatch.setattr(Contest, "rest_share", lambda _: 0.0)
    if isinstance(ended, KeyboardInterrupt):
        result = searched(tmp_path, 50)
        assert (result.interrupted, result.measured) == (True, kept)
    else:
        with pytest.raises(LoweringError, match="no device became free"):
            searched(tmp_path, 50)
    assert len(read_convs(tmp_path)) == kept


def test_metaschedule_keeps_what_was_measured_before_the_last_device_was_lost(
    pretended: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = pretended(1, loans=5)
    monkeypatch.setattr(fleets, "_compared", lambda *_: DONE)
    search = check_search(None, tmp_path, SearchOptions())
    functions = functions_of(search.tuning.rest(search.tuning.prepared(to_relax(convs_and_pool()).module)))
    (pool,) = (each for each in functions if "pool" in each.name)
    generic = Generic([pool], search.backend.target, search.tuning, tmp_path)
    bench = Bench(search.backend, BuiltNowhere(1, PATIENCE), fleet, tmp_path)
    with without_intrinsics():
        generic.measure(8, lambda function: FunctionTrials(function, search.tuning, bench).builder_and_runner())
    assert (generic.measured, generic.failed) == (5, 0)
    assert generic.trials(pool) == (5, 1.0)
    with pytest.raises(LoweringError, match="no device became free"):
        fleet.check()


class BuiltNowhere(Builders):
    """Gives each candidate a path, where nothing is."""

    def build(self, kernels: Sequence[Kernels], folder: Path) -> list[str | Outcome]:
        return [str(folder / f"{next(self._names)}.so") for _ in kernels]


def test_a_search_begins_with_measurements_and_asks_for_the_share_of_the_rest_where_trials_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    instant_trials.install(monkeypatch)
    monkeypatch.setattr(Contest, "rest_share", lambda _: done.append("share") or 0.0)
    searched(tmp_path / "first", 2, lambda step: done.append(step.doing))
    assert done[:2] == CONVS
    assert "share" not in done
    done.clear()
    searched(tmp_path / "second", 3, lambda step: done.append(step.doing))
    assert done[:4] == [*CONVS, "the net by rule", "share"]


def test_a_net_of_little_but_the_rest_has_its_convs_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    instant_trials.install(monkeypatch)
    monkeypatch.setattr(Contest, "rest_share", lambda _: 0.9)
    monkeypatch.setattr(NetSearch, "_rest", lambda _, trials: asked.append(trials))
    monkeypatch.setattr(Contest, "decided", lambda *_: None)
    assert searched(tmp_path, 80).measured == 8
    assert asked == [72]


def searched(folder: Path, trials: int, listener: Any = None) -> lowering.TuneResult:
    options = SearchOptions(trials=trials)
    return lowering.tune(convs_and_pool(), database=folder, options=options, progress=False, listener=listener)
