#!/usr/bin/env bash
# Guess:  relax.const(array) holds the array as it is: its help maps Python's int and float to 32 bits, and everything else by numpy's
#         own rule, which for an array is its dtype.
# So:     an array (or scalar) of numpy in float64 becomes float32, and one of int64 int32, of which the upper half is cut off: 2**40 is
#         0. The same numbers in a tvm.runtime.Tensor stay as they are, as do arrays of uint64.
# Hurts:  who writes a pass over models in double precision, or over sizes and indices: a bias that goes through relax.const no longer
#         has its layer's dtype, at best refused much later; large indices are others. Cure: name the dtype, relax.const(a, str(a.dtype)).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
from importlib.metadata import version

import numpy as np, tvm
from tvm import relax

print("apache-tvm", version("apache-tvm"), "apache-tvm-ffi", version("apache-tvm-ffi"))
ARRAYS = (np.array([1 / 3]), np.array([2**40]), np.array([2**40], np.uint64))
for array in ARRAYS:
    plain, named, tensor = relax.const(array), relax.const(array, str(array.dtype)), relax.const(tvm.runtime.tensor(array))
    found = [(str(constant.value.dtype), constant.value.numpy().tolist()) for constant in (plain, named, tensor)]
    print(f"{array.dtype} {array.tolist()}: as an array {found[0]}, with its dtype named {found[1]}, as a Tensor {found[2]}")
    assert found[1] == found[2] == (str(array.dtype), array.tolist()), "what is named, or a Tensor, is changed as well"
    narrow = {"float64": ("float32", [float(np.float32(1 / 3))]), "int64": ("int32", [0])}.get(str(array.dtype), found[1])
    assert found[0] == narrow, "an array is held as it is now"
PY
