"""Any number of threads run one Executable, each gets its own outputs, and the process keeps its threads and cores."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from benchmarks.soak import INPUTS, soak
from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.cpu import machine
from reparam_compiler.lowering.runtime.launchers import default_threads, on_launcher
from reparam_compiler.lowering.runtime.profile import profile
from reparam_compiler.lowering.target import describe, resolve

pytestmark = pytest.mark.tvm
Texts = dict[str, str]


@pytest.fixture(scope="module")
def compiled() -> lowering.Executable:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(3136, 4))
    return lowering.compile(net.eval(), torch.zeros(1, 3, 16, 16))


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype("float32")


def together(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def threads_of_the_process() -> int:
    return len(os.listdir("/proc/self/task"))


def test_every_thread_gets_the_outputs_of_its_inputs(compiled: lowering.Executable) -> None:
    found = soak((compiled, compiled.clone(threads=2), compiled.clone(threads=1)), threads=8, seconds=0.0)
    assert min(found.runs) >= INPUTS
    assert (found.wrong, found.raised) == (0, [])


def test_a_compiled_model_has_no_machine_before_it_runs(array: np.ndarray) -> None:
    executable = lowering.compile(nn.Conv2d(3, 8, 3).eval(), torch.zeros(1, 3, 16, 16))
    assert executable.runs_here
    (made,) = (variant.machines for variant in executable.variants)
    assert made is not None
    assert not made._free
    executable.run(array)
    executable.run(array)
    assert len(made._free) == 1


def test_the_first_runs_of_several_threads_make_the_code_once_between_them(array: np.ndarray) -> None:
    executable = lowering.compile(nn.Conv2d(3, 8, 3).eval(), torch.zeros(1, 3, 16, 16))
    found: list[np.ndarray] = []
    together(8, lambda: found.append(executable.run(array)[0]))
    assert len(found) == 8
    assert all(np.array_equal(each, found[0]) for each in found)


def test_a_clone_computes_the_same_bits_on_its_own_number_of_cores(compiled: lowering.Executable, array: np.ndarray) -> None:
    more = compiled.clone(threads=3)
    assert (more.threads, more.clone().threads, more.inputs) == (3, 3, compiled.inputs)
    np.testing.assert_array_equal(more.run(array)[0], compiled.run(array)[0])


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_a_number_of_threads_is_a_positive_number(compiled: lowering.Executable, threads: int) -> None:
    with pytest.raises(LoweringError, match=r"clone: found threads=.*expected 1 or more"):
        compiled.clone(threads=threads)


def test_the_caller_keeps_its_cores_and_later_compilations_their_target(
    compiled: lowering.Executable, array: np.ndarray
) -> None:
    before, target = os.sched_getaffinity(0), describe(resolve(None))
    for executable in (compiled.clone(threads=1), compiled.clone(threads=2)):
        executable.run(array)
        executable.time(array, repeat=1)
        profile(executable, runs=1)
        assert os.sched_getaffinity(0) == before
    assert describe(resolve(None)) == target


def test_threads_that_come_and_go_leave_nothing_behind(compiled: lowering.Executable, array: np.ndarray) -> None:
    executable = compiled.clone(threads=2)
    executable.run(array)
    before = threads_of_the_process()
    callers = 10
    for _ in range(callers):
        together(1, lambda: executable.run(array))
    assert threads_of_the_process() < before + callers // 2  # one that has ended may still be listed for a moment


def test_what_a_run_raises_reaches_its_caller_and_the_next_run_is_right(
    compiled: lowering.Executable, array: np.ndarray
) -> None:
    before = compiled.run(array)[0]

    def fail(*_: object) -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        compiled.with_machine(fail)
    np.testing.assert_array_equal(compiled.run(array)[0], before)


def test_no_more_calls_at_once_than_there_are_cores_for() -> None:
    here, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        time.sleep(0.005)
        with lock:
            here[0] -= 1

    together(8, lambda: on_launcher(machine.cores(), work))
    assert most == [1]
    most[0] = 0
    together(8, lambda: on_launcher(1, work))
    assert 1 <= most[0] <= machine.cores()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_runs_too(compiled: lowering.Executable, array: np.ndarray) -> None:
    executable = compiled.clone(threads=2)
    before = executable.run(array)[0]
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(executable.run(array)[0], before) else 1)
    deadline = time.monotonic() + 120
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"TVM_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"TVM_NUM_THREADS": "0", "OMP_NUM_THREADS": "many"}, None),
        ({}, None),
    ],
)
def test_threads_are_what_the_environment_says_or_every_core(
    stated: Texts, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, text in stated.items():
        monkeypatch.setenv(name, text)
    assert default_threads() == (expected or machine.cores())


@pytest.mark.parametrize(
    ("siblings", "quota", "expected"),
    [
        (("0", "1", "2", "3"), "max 100000", 4),
        (("0,2", "1,3", "0,2", "1,3"), "max 100000", 2),
        (("0", "1", "2", "3"), "150000 100000", 2),
        (("0", "1", "2", "3"), "50000 100000", 1),
        (("", "", "", ""), "", 4),
    ],
)
def test_cores_are_those_of_the_process_within_its_quota(
    siblings: tuple[str, ...], quota: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str) -> str:
        return quota if path.endswith("cpu.max") else siblings[int(Path(path).parts[5].removeprefix("cpu"))]

    monkeypatch.setattr(machine, "_text", read)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert machine.cores() == expected
