#!/usr/bin/env bash
# Guess:  the pool of worker threads sleeps when there is nothing to do.
# So:     after each kernel every worker yields 300,000 times before it sleeps: a single launch of a kernel of 64 additions on two threads
#         costs about a quarter of a second of CPU after it has returned (more or less with the machine and its load). The environment
#         variable TVM_THREAD_POOL_SPIN_COUNT is the number of yields: with 0 it costs nothing.
# Hurts:  whoever serves a model beside another pool of threads (ONNX Runtime, OpenMP, a second process): the spinning worker takes
#         the core from them, and containers are billed or throttled for it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
import os, subprocess, sys
from importlib.metadata import version

CHILD = """
import time
import numpy as np, tvm
from tvm import te

x = te.placeholder((64,), name="x")
y = te.compute((64,), lambda i: x[i] + 1, name="y")
schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([x, y])}))
schedule.parallel(schedule.get_loops("y")[0])
kernel = tvm.compile(schedule.mod, target="llvm")
source, result = tvm.runtime.tensor(np.zeros(64, "float32")), tvm.runtime.tensor(np.zeros(64, "float32"))


def used_asleep():
    before = time.process_time()
    time.sleep(2)
    return time.process_time() - before


idle = used_asleep()
kernel["main"](source, result)
print(idle, used_asleep())
"""


def cpu_seconds(**environment):
    """CPU seconds of two seconds of sleep: before any kernel, and after one."""
    environment = {**os.environ, "TVM_NUM_THREADS": "2", **environment}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


os.environ.pop("TVM_THREAD_POOL_SPIN_COUNT", None)
print("apache-tvm", version("apache-tvm"))
before, spun = cpu_seconds()
_, without = cpu_seconds(TVM_THREAD_POOL_SPIN_COUNT="0")
print(f"CPU of 2 s of sleep: before a kernel {before:.4f} s, after one {spun:.4f} s, with a spin count of 0 {without:.4f} s")
assert before < 0.01 and without < 0.01, "the pool costs CPU without spinning, or the measurement is off"
assert spun > 0.03, "an idle pool sleeps at once now"
print("as described: the workers spin after the kernel has returned")
PY
