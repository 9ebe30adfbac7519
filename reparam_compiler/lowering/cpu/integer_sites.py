"""A layer of bytes as a kernel computes it: by bytes and 32-bit sums, or by the same numbers as floats.

    sum x w = sum x (w - m) + m sum x           w - m is a signed byte; w, less a zero point, may take nine bits

Integers wrap, so it holds whatever the sums pass on their way.
"""

from dataclasses import replace

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
