#!/usr/bin/env bash
# Guess:  relax.transform.FoldConstant looks which calls have constants alone for their operands, and costs nothing where none has.
# So:     it first writes a kernel for every call of the function, and looks at the operands afterwards. On a chain of 40 ops of a
#         variable it calls 40 legalizers, throws 40 kernels away and returns the module as it was; run three times, 120.
# Hurts:  whoever has the pass in a pipeline: run three times it was 10 to 19 % of the time that nets took to compile. Cure: look
#         for a call of constants before, and leave the pass out where there is none.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1
"$folder/venv/bin/python" -W ignore - 2>"$folder/stderr" <<'PY' || { cat "$folder/stderr"; exit 1; }
import sys
from importlib.metadata import version

import numpy as np, tvm
from tvm import relax

OPS = 40


def chain(constant):
    """40 ops one after the other, of the input or of a constant."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType((1, 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value = relax.const(np.ones((1, 64), np.float32)) if constant else x
            for _ in range(OPS):
                value = builder.emit(relax.op.nn.relu(value))
            result = builder.emit_output(relax.op.add(x, value) if constant else value)
        builder.emit_func_output(result)
    return builder.get()


def folded(module):
    """What the pass gives, and how many legalizers it called: functions of a block builder and a call."""
    called = []

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and "legalize_ops" in code.co_filename and code.co_varnames[:2] == ("bb", "call"):
            called.append(code.co_name)

    sys.setprofile(note)
    try:
        return relax.transform.FoldConstant()(module), len(called)
    finally:
        sys.setprofile(None)


print("apache-tvm", version("apache-tvm"))
module = chain(constant=False)
after, kernels = folded(module)
unchanged = module.script() == after.script()
print("nothing constant:", OPS, "calls,", kernels, "legalized; module unchanged:", unchanged)
again = folded(after)[1]
print("once more:", again)
_, of_constants = folded(chain(constant=True))
print("all constant:", of_constants, "legalized")
assert unchanged, "the pass changes what has no constant"
assert kernels == again == OPS, "calls without constants are not legalized any more, or in another way"
assert of_constants >= OPS, "calls of constants are folded in another way"
print("as described: a kernel for each call, none of them used")
PY
