"""The threads of this process that run compiled models: as many as there are cores for, each with workers of TVM's.

    run, in any thread --> the calls that wait --> a launcher, a thread of ours --> what the call gives

TVM keeps a pool of workers for every thread that launches a kernel. It makes the pool at that thread's first kernel, binds the
thread to cores meanwhile, reads the number of workers from the environment, and ends it with the thread, but not before its
workers have stopped looking for work (by TVM's own default seconds later, where cores are scarce). So
kernels are launched by launchers alone: a caller's thread keeps its affinity, a server with a thread for each request has a
bounded number of workers, and a process that was forked makes launchers of its own.

A launcher's pool has as many threads as it is asked for, bound to no core: bound to the same ones, pools would wait for each
other while cores are idle. Its workers look for work for about a millisecond after a kernel and then sleep; TVM's own
default is a hundred times as long, which whatever else runs in the process pays for.
"""

import atexit
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import tvm_ffi

from reparam_compiler.lowering.cpu.machine import cores
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr

ResultT = TypeVar("ResultT")

SHARED_CORES = -3
"""TVM's name of an affinity: every worker may run on each of the given cores."""
SPIN, SPINS = "TVM_THREAD_POOL_SPIN_COUNT", "2000"
"""How often a worker yields before it sleeps, where the environment says nothing; TVM reads it once, in its first worker."""
STATED = ("TVM_NUM_THREADS", "OMP_NUM_THREADS")


def default_threads() -> int:
    """How many threads a run takes where nobody says: what the environment states for TVM or OpenMP, else every core."""
    for name in STATED:
        text = os.environ.get(name, "")
        if text.isdigit() and int(text):
            return int(text)
    return cores()


def at_once(threads: int) -> int:
    """How many runs of so many threads each go on at once: as many as there are cores for."""
    return max(1, cores() // threads)


def on_launcher(threads: int, work: Callable[[], ResultT]) -> ResultT:
    """What `work` gives, called on a thread that has so many threads for its kernels; raises what it raises.

    As many calls at once as there are cores for; others wait for their turn. It must not call `on_launcher` itself.
    """
    with _MAKING:
        launchers = _LAUNCHERS.get(threads)
        if launchers is None:
            launchers = _LAUNCHERS[threads] = _Launchers(threads, at_once(threads))
    return launchers.call(work)


class _Call(Generic[ResultT]):
    """One call: what is to be done, and what came of it once `done` is released."""

    __slots__ = ("done", "error", "result", "work")
    result: ResultT

    def __init__(self, work: Callable[[], ResultT]) -> None:
        self.work = work
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


class _Launchers:
    """The launchers of one number of threads, `limit` of them at most, each made when a call would wait without it."""

    def __init__(self, threads: int, limit: int) -> None:
        self._threads, self._limit = threads, limit
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = 0
        self._made: list[threading.Thread] = []

    def call(self, work: Callable[[], ResultT]) -> ResultT:
        call = _Call(work)
        with self._lock:
            self._unfinished += 1
            if len(self._made) < min(self._unfinished, self._limit):
                self._make()
        self._calls.put(call)
        call.done.acquire()
        if call.error is not None:
            raise call.error
        return call.result

    def end(self) -> None:
        """Wait until every launcher has done what it does."""
        for _ in self._made:
            self._calls.put(None)
        for launcher in self._made:
            launcher.join()

    def _make(self) -> None:
        name = f"reparam-{self._threads}-{len(self._made)}"
        launcher = threading.Thread(target=self._serve, name=name, daemon=True)
        launcher.start()
        self._made.append(launcher)

    def _serve(self) -> None:
        _make_pool(self._threads)
        while (call := self._calls.get()) is not None:
            try:
                call.result = call.work()
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                call.error = error
            with self._lock:
                self._unfinished -= 1
            call.done.release()
            del call  # and with it the arrays of its result


def _make_pool(threads: int) -> None:
    """Give the calling thread a pool of so many threads, itself one of them, that are bound to no core."""
    os.environ.setdefault(SPIN, SPINS)
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    with filter_stderr() if threads > len(allowed) else nullcontext():  # TVM warns of more threads than cores
        configure(SHARED_CORES, threads, [str(allowed[index % len(allowed)]) for index in range(threads)])
        if threads > 1:  # the pool has its size; now its threads may run anywhere
            configure(SHARED_CORES, threads, [str(core) for core in allowed])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed)


_MAKING = threading.Lock()
_LAUNCHERS: dict[int, _Launchers] = {}


def _forget() -> None:
    """In a forked process: none of the threads came along."""
    global _MAKING
    _MAKING = threading.Lock()
    _LAUNCHERS.clear()


def _end() -> None:
    for launchers in _LAUNCHERS.values():
        launchers.end()


atexit.register(_end)  # TVM is taken down after it, and nothing may run in it then
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
