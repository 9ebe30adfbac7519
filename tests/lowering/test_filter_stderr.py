"""TVM's lines that say nothing to a user are dropped; what anything else writes passes, and stderr is given back."""

import os
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("tvm")

from reparam_compiler.lowering.runtime.filter_stderr import NOISE, filter_stderr

pytestmark = pytest.mark.tvm


def test_noise_is_dropped_and_the_rest_passes(capfd: pytest.CaptureFixture[str]) -> None:
    with filter_stderr():
        os.write(2, b"".join(b"[12:00] " + noise + b" x\n" for noise in NOISE) + b"\nsegmentation fault\n")
        for kind in (b"cpu", b"gpu", b"opencl"):
            os.write(2, b"  s_tir.meta_schedule.%s.meta_schedule.pool_max\n" % kind)
    assert capfd.readouterr().err == "segmentation fault\n"


def test_what_raises_gives_stderr_back(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with filter_stderr():
            os.write(2, b"before\n")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"


CLOSED = """
import os, runpy
os.close(2)
filtered = runpy.run_path({path!r})["filter_stderr"]
with filtered():
    print("ran")
"""


def test_a_process_without_stderr_runs_on() -> None:
    code = CLOSED.format(path=sys.modules[filter_stderr.__module__].__file__)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ran\n"


def test_threads_that_are_quiet_at_once_leave_stderr_as_it_was() -> None:
    before = os.fstat(2)

    def swap() -> None:
        for _ in range(20):
            with filter_stderr():
                time.sleep(0.001)

    threads = [threading.Thread(target=swap) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = os.fstat(2)
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
