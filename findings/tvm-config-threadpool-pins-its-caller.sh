#!/usr/bin/env bash
# Guess:  runtime.config_threadpool(mode, threads, cores) tells the pool how many workers it has and where they run. Its caller stays
#         where it is.
# So:     the caller is worker 0, and its own affinity is set to one core: the one that is named, or one of TVM's choice where one
#         thread is asked for and no core is named. A thread that it starts afterwards inherits that.
# Hurts:  whoever asks for one thread from the main thread of a program: all that this thread does later, and every thread that it
#         starts (a server, a data loader, another library's pool), shares one core. Cure: os.sched_setaffinity back afterwards, or a
#         thread of one's own that configures and launches.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
import os, sys, threading
from importlib.metadata import version

for name in ("TVM_NUM_THREADS", "TVM_BIND_THREADS"):
    os.environ.pop(name, None)

import tvm

configure = tvm.get_global_func("runtime.config_threadpool")
allowed = os.sched_getaffinity(0)
if len(allowed) < 2:
    sys.exit("needs two cores that this process may use")
last = max(allowed)


def affinities(*arguments):
    """The affinity of a thread that has configured the pool, and of a thread that it starts."""
    found = []

    def inherit():
        found.append(os.sched_getaffinity(0))

    def caller():
        configure(*arguments)
        inherit()
        child = threading.Thread(target=inherit)
        child.start()
        child.join()

    thread = threading.Thread(target=caller)
    thread.start()
    thread.join()
    return found


print("apache-tvm", version("apache-tvm"))
named, sized = affinities(-2, 1, [str(last)]), affinities(1, 1)
print(f"allowed: {len(allowed)} cores")
print(f"core {last} named: the caller may use {named[0]}, a thread of its own {named[1]}")
print(f"one thread asked for: the caller may use {sized[0]}, a thread of its own {sized[1]}")
print("the main thread, which did not call:", "as before" if os.sched_getaffinity(0) == allowed else "changed")
assert named == [{last}] * 2, "the caller keeps its affinity where a core is named"
assert len(sized[0]) == 1 and sized[1] == sized[0], "the caller keeps its affinity where a number of threads is asked for"
assert os.sched_getaffinity(0) == allowed, "threads that did not call are moved too"
print("as described: the caller is pinned with its pool")
PY
