#!/usr/bin/env bash
# Guess:  a kernel's buffer of scope "local" is a thread's own: registers, or the stack where they do not suffice.
# So:     for llvm the host passes take it from a pool of the heap: TVMBackendAllocWorkspace before and TVMBackendFreeWorkspace after,
#         in the body of the innermost parallel loop, here twice for each of 512 tiles, for 32 bytes (without a parallel loop once for
#         the kernel). An allocation that is annotated "disable_lower_builtin" stays on the stack, and LLVM holds it in registers.
# Hurts:  whoever schedules the sums of a tile by cache_write(…, "local"): on a small tile the two calls take as long as its arithmetic.
#         Cure: a pass that annotates the allocations before the host passes, in a TIR pipeline of one's own.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
import re
from importlib.metadata import version

import tvm, tvm_ffi
from tvm import te, tirx
from tvm.tirx.transform import prim_func_pass

ROWS, COLUMNS, DEPTH, TILE = 64, 64, 32, 8


def product(parallel):
    """A product of matrices; the sums of 8 columns are local."""
    a, b, k = te.placeholder((ROWS, DEPTH), name="a"), te.placeholder((DEPTH, COLUMNS), name="b"), te.reduce_axis((0, DEPTH))
    c = te.compute((ROWS, COLUMNS), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]), name="c")
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([a, b, c])}))
    block = schedule.get_sblock("c")
    row, column, depth = schedule.get_loops(block)
    column, lane = schedule.split(column, [None, TILE])
    schedule.reorder(row, column, depth, lane)
    tile = schedule.fuse(row, column)
    if parallel:
        schedule.parallel(tile)
    schedule.reverse_compute_at(schedule.cache_write(block, 0, "local"), tile)
    schedule.vectorize(lane)
    schedule.decompose_reduction(block, depth)
    return schedule.mod


@prim_func_pass(opt_level=0)
def annotated(func, _module, _context):
    """The function with every allocation left to code generation."""

    def left(allocation):
        return tirx.AllocBuffer(allocation.buffer, {"disable_lower_builtin": tirx.IntImm("bool", 1)})

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, left)))


passes, host, device = tirx.get_tir_pipeline("s_tir")
tirx.register_tir_pipeline("annotated", lambda: (passes, lambda: tvm.ir.transform.Sequential([annotated, host()]), device))


def looped(blocks, start):
    """Whether control can come back to a block."""
    seen, ahead = set(), [start]
    while ahead:
        following = set(re.findall(r"label %([\w.]+)", blocks[ahead.pop()])) - seen
        seen |= following
        ahead += following
    return start in seen


def calls(parallel, pipeline="default"):
    """Calls that take and that free the local buffer, of the whole code and of its loops."""
    target = {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": "x86-64-v3"}
    code = tvm.compile(product(parallel), target=target, tir_pipeline=pipeline).mod.inspect_source("ll")
    found = {"take": [0, 0], "free": [0, 0]}
    for function in code.split("\ndefine ")[1:]:
        words = re.split(r"\n([\w.]+):", function)
        blocks = dict(zip(words[1::2], words[2::2]))
        for label, block in blocks.items():
            for name, pattern in {"take": r"%c_local = .*call ptr ", "free": r"call i32 .*%c_local\)"}.items():
                times = len(re.findall(pattern, block))
                found[name][0] += times
                found[name][1] += times * looped(blocks, label)
    return found


print("apache-tvm", version("apache-tvm"))
found = {"parallel": calls(True), "serial": calls(False), "parallel, annotated": calls(True, "annotated")}
for name, of in found.items():
    print(f"{name}: calls of the pool to take {of['take'][0]}, within a loop {of['take'][1]}; to free {of['free'][0]}, {of['free'][1]}")
assert found["parallel"] == {"take": [1, 1], "free": [1, 1]}, "a local buffer is not taken from the pool for each tile any more"
assert found["serial"] == {"take": [1, 0], "free": [1, 0]}, "without a parallel loop it is taken in another way"
assert found["parallel, annotated"] == {"take": [0, 0], "free": [0, 0]}, "the annotation does not keep it"
print("as described: a local buffer is of the heap, unless its allocation is annotated")
PY
