"""A layer of bytes as a kernel computes it: by bytes and 32-bit sums, or by the same numbers as floats.

    (float(sums) s + b) / t = float(sums) (s / t) + b / t       one product and one sum: a division costs as much as a tile
    relu(x) / t             = relu(x / t)                       t > 0
    sum x w                 = sum x (w - m) + m sum x           w - m is a signed byte; w, less a zero point, may take nine bits

Integers wrap, so the last line holds whatever the sums pass on their way.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Shaped

from reparam_compiler.lowering.conv.algorithms import Step
from reparam_compiler.lowering.relax.conv_sites import INTEGERS, ConvSite

SINGLE = "float32"


def of_bytes(weight: Shaped[np.ndarray, "..."]) -> bool:
    """Whether each of these integers is a signed byte."""
    limits = np.iinfo(np.int8)
    return bool(limits.min <= weight.min(initial=0) and weight.max(initial=0) <= limits.max)


def split(site: ConvSite) -> tuple[ConvSite, ConvSite] | None:
    """A site whose weights take nine bits, as one of bytes behind one that sums the data; nothing where their range is wider.

    The first has the second's result still to read, as what its epilogue adds to each pixel.
    """
    middle = int(site.weight.min()) - np.iinfo(np.int8).min
    if site.shape.groups > 1 or not of_bytes(site.weight - middle):
        return None
    sums = replace(
        site,
        shape=replace(site.shape, channels_out=1),
        weight=np.ones((1, *site.weight.shape[1:]), site.weight.dtype),
        epilogue=(Step("mul", "scalar", value=float(middle)),),
        operands=(),
    )
    steps = (Step("add", "pixels"), *(_after(step, 1) for step in site.epilogue))
    return replace(site, weight=site.weight - middle, epilogue=steps), sums


def with_one_product(site: ConvSite) -> ConvSite:
    """The site with the products and sums that follow its integer sums as one product and one sum, rounded once."""
    steps, operands = site.epilogue, list(site.operands)
    if steps[:1] != (Step("to", dtype=SINGLE),) or any(step.source is not None or step.operand == "earlier" for step in steps):
        return site
    scale, shift, rectified, taken = np.float64(1), np.float64(0), False, 1
    for step in steps[1:]:
        other = np.float64(step.value) if step.operand == "scalar" else operands[0] if step.operand == "channels" else None
        if step.op == "relu" and not rectified:
            rectified, taken = True, taken + 1
            continue
        if other is None or step.swapped:
            break
        if step.op in ("mul", "div") and np.all(other > 0):
            factor = np.float64(1) * other if step.op == "mul" else 1 / np.float64(other)
            scale, shift = scale * factor, shift * factor
        elif step.op in ("add", "sub") and not rectified:
            shift = shift + np.float64(other) if step.op == "add" else shift - np.float64(other)
        else:
            break
        taken += 1
        operands = operands[1:] if step.operand == "channels" else operands
    affine = [_step("mul", scale), *([_step("add", shift)] if np.any(shift) else [])]
    relu = [Step("relu", dtype=SINGLE)] if rectified else []
    made = (steps[0], *(step for step, _ in affine), *relu, *steps[taken:])
    read = [operand for step, operand in affine if step.operand == "channels"]
    return replace(site, epilogue=made, operands=(*read, *operands))


def in_single(site: ConvSite) -> ConvSite:
    """The site with its integers as floats, whose sums are rounded to integers where they are not cast to floats at once."""
    steps = tuple(replace(step, dtype=step.dtype or INTEGERS) for step in site.epilogue)
    if not steps or steps[0].dtype != SINGLE:
        before = (Step("round"), Step("to", dtype=INTEGERS))
        steps = (*before, *(_after(step, len(before)) for step in steps))
    return replace(site, shape=replace(site.shape, dtype=SINGLE), weight=site.weight.astype(SINGLE), epilogue=steps)


def _after(step: Step, count: int) -> Step:
    """A step behind so many further ones, which counts its values from the first of them."""
    return replace(step, source=None if step.source is None else step.source + count, other=step.other + count)


def _step(op: str, value: Any) -> tuple[Step, Any]:
    """A step with a number, or one for each channel, and its operand."""
    if np.ndim(value) == 0:
        return Step(op, "scalar", value=float(np.float32(value)), dtype=SINGLE), None
    return Step(op, "channels", dtype=SINGLE), value.astype(SINGLE)
