"""Chance: what is drawn at each run has no compiled form; what is drawn in training alone is as torch has it in evaluation."""

from typing import Any

from tvm import relax

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead

DRAWN = ("randn.default", "randn_like.default", "exponential.default", "bernoulli.p")


@instead(*DRAWN, tvm="draws once, at the import, or not at all")
def _drawn(call: Call) -> Any:
    raise call.refusal("numbers drawn at random at each run", "give them to the model as an input")


@instead("native_dropout.default", "dropout.default", "dropout_.default", tvm="leaves it out in training mode too")
def _dropout(call: Call) -> Any:
    if call["train"] and call["p"]:
        raise call.refusal("a dropout in training mode", "call model.eval(), or leave out training=True")
    kept = call.tensor("input")
    if not str(call.node.target.__name__).startswith("native"):  # type: ignore[union-attr]
        return kept
    return relax.Tuple([kept, call.emit(relax.op.full_like(kept, relax.const(1, "bool"), dtype="bool"))])


@instead("rrelu_with_noise_functional.default", tvm="does not know it")
def _leaky_relu_of_random_slope(call: Call) -> Any:
    if call["training"]:
        raise call.refusal("slopes drawn at random at each run", "call model.eval()")
    found = call.emit(relax.op.nn.leakyrelu(call.tensor("input"), (call["lower"] + call["upper"]) / 2))
    return relax.Tuple([found, found])
