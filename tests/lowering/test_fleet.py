"""A search on devices far away: as fast as there are devices, and nothing is lost or hangs, whatever happens to them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import onnx

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.rpc import device
from reparam_compiler.lowering.rpc.address import Rpc
from reparam_compiler.lowering.rpc.device import held_device
from reparam_compiler.lowering.rpc.tracker import GivenUpError, known
from reparam_compiler.lowering.search import fleet as fleets
from reparam_compiler.lowering.search.asked import SearchOptions, check_search
from reparam_compiler.lowering.search.fleet import Fleet
from reparam_compiler.lowering.search.layers import layers_of
from reparam_compiler.lowering.search.measuring import Job, Kernels, _built
from reparam_compiler.lowering.search.pairs import Outcome, Repeats
from reparam_compiler.lowering.search.records import read_convs
from reparam_compiler.lowering.search.trials import Trials
from reparam_compiler.lowering.target import resolve
from tests.support.fleets import KEY, PATIENCE, SLEEPY, Program, server, tracker
from tests.support.onnx_models import convs_and_pool, model_of, normal
from tests.support.tvmc_runs import tvmc

pytestmark = [pytest.mark.tvm, pytest.mark.usefixtures("one_process")]
HERE = backend_for(resolve(None))
TUNING = HERE.tuning()
assert TUNING is not None
SERVERS = 3


class Builder:
    """Builds candidates in this process."""

    def build(self, kernels: Sequence[Kernels], folder: Path) -> list[str]:
        return [_built((each, str(folder / f"{index}.so"), None)) for index, each in enumerate(kernels)]


@pytest.fixture(scope="module")
def of() -> Iterator[Program]:
    """A tracker of three sleepy servers."""
    with contextlib.ExitStack() as programs:
        known_by = programs.enter_context(tracker())
        for _ in range(SERVERS):
            programs.enter_context(server(known_by, start=SLEEPY))
        yield known_by


@pytest.fixture(scope="module")
def rpc(of: Program) -> Rpc:
    return Rpc(of.address, KEY, wait=PATIENCE, timeout=PATIENCE)


@pytest.fixture(scope="module")
def fleet(rpc: Rpc) -> Iterator[Fleet]:
    with contextlib.closing(Fleet(rpc, asked(1))) as made:
        yield made


@pytest.fixture
def hasty(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """The same with little time for a candidate."""
    monkeypatch.setattr(fleet, "repeats", asked(1, 4.0))
    monkeypatch.setattr(fleets, "PARTING", 1.0)  # a session is ended on its server so much later
    monkeypatch.setattr(device, "CONNECTING", 5.0)
    return fleet


@pytest.fixture(scope="module")
def rule_and_other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Job]:
    """Two points of a conv: the rule's, and another one beside it."""
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    module = TUNING.prepared(to_relax(model_of([node], {"x": (1, 16, 12, 10)}, ["y"], {"w": normal(16, 16, 3, 3)})).module)
    (layer,) = layers_of(TUNING.sites(module))
    meter: Any = Fleet(Rpc("127.0.0.1:1", KEY), asked(1))
    bench = Trials(HERE, TUNING, module["main"], Builder(), meter, tmp_path_factory.mktemp("jobs"))  # type: ignore[arg-type]
    rule, other = bench._jobs([(layer, point) for point in TUNING.points(layer.shape)[:2]])
    assert isinstance(rule, Job)
    assert isinstance(other, Job)
    return rule, replace(other, rule=rule.candidate)


def asked(milliseconds: int, timeout: float = PATIENCE) -> Repeats:
    """How a sleepy server takes so long for one measurement."""
    return Repeats(1, milliseconds, 0, timeout)


def lasting(job: Job, milliseconds: int) -> Job:
    return replace(job, repeats=asked(milliseconds))


def timed(work: Callable[[], list[Outcome | None]]) -> tuple[float, list[Outcome | None]]:
    began = time.monotonic()
    return (outcomes := work()) and (time.monotonic() - began, outcomes)


def holding(lender: Program) -> None:
    """Waits until somebody holds its device."""
    until = time.monotonic() + PATIENCE
    while not psutil.Process(lender.process.pid).children():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_three_devices_measure_1_7_times_as_much_as_one_at_least(
    rpc: Rpc, fleet: Fleet, rule_and_other: tuple[Job, Job]
) -> None:
    jobs = [lasting(rule_and_other[0], 1500)] * 6
    fleet.measure([rule_and_other[0]] * SERVERS)  # its processes are there
    with contextlib.ExitStack() as others:
        for _ in range(SERVERS - 1):
            others.enter_context(contextlib.closing(held_device(rpc)))
        alone, found = timed(lambda: fleet.measure(jobs))
    assert found == [Outcome((1.5,))] * 6
    together, found = timed(lambda: fleet.measure(jobs))
    assert found == [Outcome((1.5,))] * 6
    assert alone > 1.7 * together


def test_a_candidate_is_measured_beside_the_rule_and_a_wrong_one_costs_itself(
    fleet: Fleet, rule_and_other: tuple[Job, Job], tmp_path: Path
) -> None:
    rule, other = rule_and_other
    ((path, packing),) = other.candidate.weights
    np.save(tmp_path / "altered.npy", 1 + np.load(path))
    wrong = replace(other, candidate=replace(other.candidate, weights=((str(tmp_path / "altered.npy"), packing),)))
    by_rule, right, refused = fleet.measure([rule, other, wrong])
    assert by_rule == Outcome((1e-3,))
    assert right == Outcome((1e-3,), (1e-3,))
    assert "running it failed: its output differs from the rule's by" in refused.failure


def test_a_server_that_is_killed_in_the_middle_costs_nothing(
    of: Program, rpc: Rpc, fleet: Fleet, rule_and_other: tuple[Job, Job]
) -> None:
    with server(of, start=SLEEPY) as victim, ThreadPoolExecutor(1) as pool:
        found = pool.submit(fleet.measure, [lasting(rule_and_other[0], 1000)] * 8)
        holding(victim)
        victim.ended()
        assert found.result() == [Outcome((1.0,))] * 8
        assert known(rpc).servers == SERVERS


@pytest.mark.slow
def test_a_server_that_hangs_costs_one_timeout(of: Program, hasty: Fleet, rule_and_other: tuple[Job, Job]) -> None:
    with server(of, start=SLEEPY) as victim, ThreadPoolExecutor(1) as pool:
        found = pool.submit(hasty.measure, [lasting(rule_and_other[0], 500)] * 8)
        holding(victim)
        victim.signalled(signal.SIGSTOP)
        assert found.result() == [Outcome((0.5,))] * 8


@pytest.mark.slow
def test_a_candidate_that_hangs_is_tried_on_two_devices(hasty: Fleet, rule_and_other: tuple[Job, Job]) -> None:
    rule = rule_and_other[0]
    hung, sound = hasty.measure([lasting(rule, 10**8), rule])
    assert hung == Outcome(failure="running it took too long, on 2 devices")
    assert sound == Outcome((1e-3,))
    assert hasty.measure([rule] * 2 * SERVERS) == [Outcome((1e-3,))] * 2 * SERVERS  # every device is there again


def test_a_tracker_that_is_restarted_costs_a_line(rule_and_other: tuple[Job, Job], caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.ExitStack() as open_:
        first = open_.enter_context(tracker())
        lender = open_.enter_context(server(first, start=SLEEPY))
        fleet = open_.enter_context(contextlib.closing(Fleet(Rpc(first.address, KEY, wait=PATIENCE), asked(1))))
        found = open_.enter_context(ThreadPoolExecutor(1)).submit(fleet.measure, [lasting(rule_and_other[0], 1000)] * 2)
        holding(lender)
        first.ended()
        until = time.monotonic() + PATIENCE
        while "does not answer" not in caplog.text:  # to the second of them
            assert time.monotonic() < until
            time.sleep(0.02)
        open_.enter_context(tracker(int(first.address.rpartition(":")[2])))
        assert found.result() == [Outcome((1.0,))] * 2
    assert "answers again" in caplog.text


def test_a_key_that_nobody_has_ends_a_search_after_the_wait(rpc: Rpc, rule_and_other: tuple[Job, Job]) -> None:
    with contextlib.closing(Fleet(replace(rpc, key="pi4", wait=1.0), asked(1))) as fleet:
        assert fleet.width == 1
        assert fleet.measure([rule_and_other[0]]) == [None]
        with pytest.raises(LoweringError, match="it has no server of that key; it has loopback"):
            fleet.check()


def test_what_is_given_up_waits_for_nothing(rpc: Rpc, rule_and_other: tuple[Job, Job]) -> None:
    fleet = Fleet(replace(rpc, key="pi4"), asked(1))
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(fleet.measure, [rule_and_other[0]])
        threading.Timer(0.5, fleet.close).start()
        assert found.result(PATIENCE) == [None]
    with pytest.raises(GivenUpError):
        fleet.check()


def test_a_target_of_devices_far_away_needs_what_links_for_it(tmp_path: Path) -> None:
    foreign, rpc = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76", Rpc("127.0.0.1:1", KEY)
    with pytest.raises(LoweringError, match=r"candidates are run here, and .* name devices that run them"):
        check_search(foreign, tmp_path, SearchOptions())
    with pytest.raises(LoweringError, match=r"--cross-compiler aarch64-linux-gnu-g|compiler='aarch64-linux-gnu-g"):
        check_search(foreign, tmp_path, SearchOptions(), rpc)
    with pytest.raises(LoweringError, match="expected HOST:PORT"):
        check_search(None, tmp_path, SearchOptions(), replace(rpc, tracker="here"))
    linked = check_search(foreign, tmp_path, SearchOptions(), replace(rpc, compiler="g++"))
    assert linked.backend.unrunnable_here()


@pytest.mark.slow
def test_ctrl_c_ends_a_search_on_a_fleet_with_what_is_known(of: Program, rpc: Rpc, tmp_path: Path) -> None:
    onnx.save(convs_and_pool(), tmp_path / "m.onnx")
    words = ("tune", tmp_path / "m.onnx", "-o", tmp_path / "records", "--repeat", 1, "--number", 500, "--json")
    there = ("--rpc-tracker", of.address, "--rpc-key", KEY, "--rpc-wait", int(PATIENCE), "--timeout", int(PATIENCE))
    command = [sys.executable, "-m", "reparam_compiler.tvmc", *map(str, (*words, *there))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True) as search:
        assert search.stdout is not None
        steps = [json.loads(search.stdout.readline()) for _ in range(4)]
        os.killpg(search.pid, signal.SIGINT)
        *more, result = map(json.loads, search.communicate(timeout=PATIENCE)[0].splitlines())
    assert search.returncode == 130
    assert result["interrupted"]
    assert result["measured"] == len(read_convs(tmp_path / "records")) >= max(step["trial"] for step in (*steps, *more))
    until = time.monotonic() + PATIENCE
    while known(rpc).free < SERVERS:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_search_on_devices_far_away_keeps_what_one_here_keeps(of: Program, tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        onnx.helper.make_node("CumSum", ["c", "axis"], ["y"]),
    ]
    weights = {"w": normal(16, 16, 3, 3), "axis": np.asarray(3)}
    onnx.save(model_of(nodes, {"x": (1, 16, 12, 10)}, ["y"], weights), tmp_path / "m.onnx")
    with server(of, "real"):
        words = ("tune", tmp_path / "m.onnx", "-o", tmp_path / "records", "--trials", 6, "--repeat", 1, "--json")
        done = tvmc(*words, "--rpc-tracker", of.address, "--rpc-key", "real", "--rpc-wait", int(PATIENCE))
    assert done.exit_code == 0, done.output
    *steps, result = map(json.loads, done.stdout.splitlines())
    assert result["measured"] == 6
    assert result["net_seconds"] <= result["rule_seconds"]
    assert any(task["trials"] for task in result["tasks"][1:])  # of what has no recipe
    assert steps[-1]["doing"].startswith("the running net")
    records = read_convs(tmp_path / "records")
    assert {record.where for record in records} == {"alone", "net"}
    assert not any(record.failure for record in records)
    done = tvmc("compile", tmp_path / "m.onnx", "--tuning-records", tmp_path / "records", "-o", tmp_path / "m.tar")
    assert done.exit_code == 0, done.output
