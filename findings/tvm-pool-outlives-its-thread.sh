#!/usr/bin/env bash
# Guess:  worker threads are shared by the threads of a process, or are gone when the thread that used them has been joined.
# So:     each thread that launches a parallel kernel gets a pool of its own. Its workers yield 300,000 times after a kernel, and hear
#         only then that they are to end; the thread waits for them after Python has called it joined. Ten threads in turn, one kernel
#         each on two threads, leave twenty: ten workers that spin, ten that wait. They end by and by. With
#         TVM_THREAD_POOL_SPIN_COUNT=0 none is left.
# Hurts:  whoever runs a kernel in a thread per request: workers of requests that were answered take the cores from those that wait,
#         the busier the machine the longer. Cure: few threads that live long launch all kernels, or the environment variable.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
import json, os, subprocess, sys
from importlib.metadata import version

CHILD = """
import json, os, threading, time
import numpy as np, tvm
from tvm import te

x = te.placeholder((64,), name="x")
y = te.compute((64,), lambda i: x[i] + 1, name="y")
schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([x, y])}))
schedule.parallel(schedule.get_loops("y")[0])
kernel = tvm.compile(schedule.mod, target="llvm")
source, result = tvm.runtime.tensor(np.zeros(64, "float32")), tvm.runtime.tensor(np.zeros(64, "float32"))


def tasks():
    return len(os.listdir("/proc/self/task"))


before = tasks()
for _ in range(10):
    thread = threading.Thread(target=kernel["main"], args=(source, result))
    thread.start()
    thread.join()
time.sleep(0.05)
joined, start = tasks(), time.monotonic()
while tasks() > before and time.monotonic() < start + 300:
    time.sleep(0.1)
print(json.dumps([joined - before, tasks() - before, time.monotonic() - start]))
"""


def left(**environment):
    """Threads more than before: when ten were joined, and at last; and the seconds between."""
    environment = {**os.environ, "TVM_NUM_THREADS": "2", **environment}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


os.environ.pop("TVM_THREAD_POOL_SPIN_COUNT", None)
print("apache-tvm", version("apache-tvm"))
joined, at_last, seconds = left()
print(f"ten threads joined: {joined} threads more than before, {seconds:.1f} s later {at_last}")
without, _, _ = left(TVM_THREAD_POOL_SPIN_COUNT="0")
print(f"with a spin count of 0: {without}")
assert joined >= 10, "pools are shared now, or end with their threads"
assert at_last == 0, "pools do not end at all"
assert without <= 2, "workers that do not spin outlive their threads too"
print("as described: the workers of threads that were joined spin on")
PY
