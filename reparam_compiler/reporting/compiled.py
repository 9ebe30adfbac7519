"""The page of a compiled model: what was fused first, and where the time of a run goes, call by call, under the machine's roof.

    seconds of a call >= max(FLOP / peak, bytes / bandwidth)

A call has the bytes of the layer that it computes: calls and layers come in one order, and arithmetic tells a layer from its
neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reparam_compiler.api.compiling import UNREAD
from reparam_compiler.api.report import FuseReport
from reparam_compiler.cost.measure import measure_costs
from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.models.opening import open
from reparam_compiler.reporting.gather import page_of_fusing, page_of_models, page_without_graph
from reparam_compiler.reporting.page import KernelCall, KernelTable, Layer, Page, Provenance
from reparam_compiler.reporting.words import short

if TYPE_CHECKING:
    from reparam_compiler.lowering import Executable
    from reparam_compiler.lowering.runtime import profile as profiles


def page_of_compiling(
    title: str,
    model: Any,
    example_inputs: Sequence[Any] | None,
    made: "Executable",
    provenance: Provenance,
    *,
    fused: FuseReport | None,
) -> Page:
    """The page of a model and what `compile` made of it, which is profiled if it runs on this machine.

    fused: what `fuse` did before, if it did anything.
    """
    page = page_of_what_is_built(title, model, example_inputs, provenance, fused=fused)
    verified = f"{'verified' if made.verified else 'not verified'}: {made.verification}"
    page = replace(page, accuracy=(*page.accuracy, f"compiled for {made.target}", verified, *_memory(made)))
    from reparam_compiler.lowering.runtime.profile import profile

    try:
        return with_profile(page, profile(made), measure_costs().bytes_per_second)
    except LoweringError as error:
        return replace(page, remarks=(*page.remarks, f"not profiled: {error}"))


def _memory(made: "Executable") -> tuple[str, ...]:
    """What a run of it takes, beside what the graph's values need; nothing where sizes are not known."""
    if (plan := made.memory) is None:
        return ()
    at_once, allocated, scratch = (short(size, "B") for size in (plan.peak, plan.planned, plan.scratch))
    return (f"memory of the compiled model: activations {at_once} at once, {allocated} allocated for them; scratch {scratch}",)


def page_of_what_is_built(
    title: str, model: Any, example_inputs: Sequence[Any] | None, provenance: Provenance, *, fused: FuseReport | None
) -> Page:
    """The page of a model as kernels are made for it: fused before, or as it is; without a graph where it cannot be read."""
    if fused is not None:
        return page_of_fusing(title, fused, provenance)
    try:
        source = open(model, example_inputs)
        return page_of_models(title, source.frontend.name, source.graph, None, provenance)
    except UNREAD as refusal:
        return page_without_graph(title, f"its graph is not shown: {first_line(refusal)}", provenance)


def with_profile(page: Page, found: "profiles.Profile", bandwidth: float | None) -> Page:
    """The page with the times of kernels. bandwidth: the machine's, in bytes per second."""
    table = KernelTable(tuple(_calls(found.layers, page.layers)), found.run_seconds, found.threads, found.peak_flops, bandwidth)
    return replace(page, kernels=table)


def _calls(profiled: "Sequence[profiles.Layer]", layers: Sequence[Layer]) -> Iterator[KernelCall]:
    left = [layer for layer in layers if layer.multiply_adds]
    for call in profiled:
        place = next((place for place, layer in enumerate(left) if 2 * layer.multiply_adds == call.flops), None)
        moved = left.pop(place).bytes if place is not None else 0
        yield KernelCall(call.kernel, call.algorithm, call.shape, call.seconds, call.share, call.flops, moved)
