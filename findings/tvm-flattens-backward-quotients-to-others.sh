#!/usr/bin/env bash
# Guess:  a kernel of TE reads x[(5 - i) // 2 + 1, j] where it says so: flattening a buffer of two axes to one rewrites the place, which
#         an exact integer arithmetic stands behind.
# So:     FlattenBuffer of apache-tvm 0.27 forgets the number where an axis is counted backwards and divided: (5 - i) // 2 becomes
#         2 + i // -2, which is 1 for i = 1 and should be 2. The same where an axis is a remainder and then moved: (i % 4 + 1) // 2
#         becomes (i + 1) % 4 // 2. Half or a quarter of the elements are others, and nothing is said. The same quotients written to
#         a buffer as values are right, and so is reading x[2 - i // 2, j].
# Hurts:  who lowers nets by TVM that interleave and then flip (a pixel unshuffle, or a stack of two and its flip along channels):
#         relax fuses both into one kernel, whose result is wrong. Cure: count forwards, q - (i + m - 1 - r) // m for (k - i) // m.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
from importlib.metadata import version

import numpy as np
import tvm
from tvm import te, tirx

ROWS = np.repeat(np.arange(4, dtype="float32")[:, None], 2, 1)  # a row has its own number


def number(value):
    return tirx.const(value, "int64")


def rows_read(place, extent):
    """Which rows a kernel reads; the places of all lie within x."""
    x = te.placeholder((4, 2), "float32", "x")
    y = te.compute((number(extent), number(2)), lambda i, j: x[place(i), j], "y")
    out = tvm.runtime.tensor(np.zeros((extent, 2), "float32"))
    tvm.compile(tvm.IRModule({"main": te.create_prim_func([x, y])}), target="llvm")["main"](tvm.runtime.tensor(ROWS), out)
    return out.numpy()[:, 0].astype(int).tolist()


div, mod = tirx.floordiv, tirx.floormod
cases = {
    "(5 - i) // 2 + 1": (lambda i: div(number(5) - i, number(2)) + 1, lambda i: (5 - i) // 2 + 1, 6),
    "(i % 4 + 1) // 2": (lambda i: div(mod(i, number(4)) + 1, number(2)), lambda i: (i % 4 + 1) // 2, 8),
    "3 - i // 2": (lambda i: number(3) - div(i, number(2)), lambda i: 3 - i // 2, 6),
}
found = {name: (rows_read(place, extent), list(map(meant, range(extent)))) for name, (place, meant, extent) in cases.items()}
print("apache-tvm", version("apache-tvm"))
for name, (read, meant) in found.items():
    print(f"x[{name}]: rows {read}, meant {meant}")
assert found["(5 - i) // 2 + 1"][0] == [3, 2, 2, 1, 1, 0], "a backward quotient is read elsewhere now"
assert found["(i % 4 + 1) // 2"][0] == [0, 1, 1, 0, 0, 1, 1, 0], "a moved remainder is read elsewhere now"
assert found["3 - i // 2"][0] == found["3 - i // 2"][1], "the cure is none now"
print("as described: places that are counted backwards are flattened to others")
PY
