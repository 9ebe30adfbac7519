#!/usr/bin/env bash
# Guess:  in a TVM kernel `x != x` is true where x is NaN, as in C, numpy and IEEE 754: the usual test where a library has no isnan.
# So:     TVM simplifies it to false before code is generated, for floats as for integers (tvm.sym.Analyzer: `v != v` is False), so that a
#         Select on it always takes the other branch. `tirx.isnan(x)` is true for NaN.
# Hurts:  who writes a kernel that replaces or propagates NaN by that test (nan_to_num, a maximum that keeps NaN, nansum): NaN goes
#         through as any number, without a word. Cure: tirx.isnan.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
from importlib.metadata import version

import numpy as np, tvm
from tvm import te, tirx

VALUES = np.array([1, np.nan, -np.inf, np.nan], np.float32)


def marked(test):
    """What a kernel writes that puts 1 where the test of an element is true, and 0 elsewhere."""
    x = te.placeholder((len(VALUES),), "float32")
    y = te.compute(x.shape, lambda i: tirx.Select(test(x[i]), tirx.const(1, "float32"), tirx.const(0, "float32")))
    out = tvm.runtime.tensor(np.full_like(VALUES, -1))
    tvm.compile(te.create_prim_func([x, y]), target="llvm")(tvm.runtime.tensor(VALUES), out)
    return out.numpy().tolist()


print("apache-tvm", version("apache-tvm"), "apache-tvm-ffi", version("apache-tvm-ffi"))
v = tirx.Var("v", "float32")
simplified = tvm.sym.Analyzer().simplify(v != v)
print("v != v of a float32 v, simplified:", simplified)
unequal, isnan = marked(lambda element: element != element), marked(tirx.isnan)
wanted = (VALUES != VALUES).astype(np.float32).tolist()
print(f"of {VALUES.tolist()}: numpy x != x {wanted}, kernel x != x {unequal}, kernel isnan {isnan}")
assert str(simplified) == "T.bool(False)", "v != v is left as it is now"
assert isnan == wanted, "isnan itself is off"
assert unequal == [0] * len(VALUES), "the kernel's x != x finds NaN now"
PY
