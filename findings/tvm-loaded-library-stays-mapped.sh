#!/usr/bin/env bash
# Guess:  a compiled model that was loaded from a shared library is gone with the last reference to it, and its code with it.
# So:     tvm.runtime.load_module never unmaps what it loaded. Twenty libraries, each loaded and dropped with its file deleted, leave
#         twenty mapped, five mappings each, though nothing refers to them and the collector has run. ctypes' dlclose of a library
#         that was opened by hand unmaps it, so it is not the system that keeps them.
# Hurts:  a server that loads every new version of its models, or a test suite: code and the deleted files' space stay until the
#         process ends, and Linux allows a process some 65,000 mappings. Cure: a process of its own for models that come and go.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1
"$folder/venv/bin/python" -W ignore - "$folder" 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
import _ctypes, ctypes, gc, os, sys
from importlib.metadata import version

import tvm
from tvm import te

folder = sys.argv[1] + "/libraries"
os.mkdir(folder)
x = te.placeholder((4,), "float32", "x")
y = te.compute((4,), lambda i: x[i] + 1, "y")
kernel = tvm.compile(tvm.IRModule({"main": te.create_prim_func([x, y]).with_attr("global_symbol", "main")}), target="llvm")


def mapped(name):
    """Libraries and mappings of files whose path begins so."""
    with open("/proc/self/maps") as maps:
        paths = [line.split(maxsplit=5)[5] for line in maps if name in line]
    return len(set(paths)), len(paths)


for index in range(20):
    path = f"{folder}/by_tvm_{index}.so"
    kernel.export_library(path)
    module = tvm.runtime.load_module(path)
    del module
    gc.collect()
    os.unlink(path)
by_tvm = mapped(f"{folder}/by_tvm")

path = f"{folder}/by_hand.so"
kernel.export_library(path)
handle = ctypes.CDLL(path)._handle
opened = mapped(path)
_ctypes.dlclose(handle)
closed = mapped(path)

print("apache-tvm", version("apache-tvm"))
print(f"loaded and dropped by TVM: {by_tvm[0]} libraries of 20 mapped, in {by_tvm[1]} mappings")
print(f"opened by hand: {opened[1]} mappings; closed: {closed[1]}")
assert by_tvm[0] == 20, "dropped libraries are unmapped now"
assert opened[0] == 1 and closed == (0, 0), "the system keeps libraries that are closed"
print("as described: what TVM loads stays mapped")
PY
