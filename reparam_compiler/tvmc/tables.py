"""What `tvmc` prints for people: plain columns, which need no package beside numpy."""

from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reparam_compiler.lowering import Executable, TuneResult
    from reparam_compiler.lowering.cpu.families import CpuFamily
    from reparam_compiler.lowering.runtime.profile import Profile
    from reparam_compiler.lowering.runtime.variant import Variant


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Aligned columns; the first `left` to the left, numbers to the right."""
    table = [list(head), *map(list, rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(head))]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def interface_table(made: "Executable") -> str:
    """Inputs and outputs."""
    sides = (("in", made.inputs), ("out", made.outputs))
    rows = [(side, spec.name, " ".join(map(str, spec.shape)), spec.dtype) for side, specs in sides for spec in specs]
    return columns(("", "name", "shape", "dtype"), rows, left=4)


def memory_line(made: "Executable") -> str:
    """What a run holds at most, beside what a plain net would; what that takes from the machine."""
    plan = made.memory
    if plan is None:
        return "memory: not known, for a size is symbolic"
    peak, bound, planned, scratch, weights = (f"{size / 2**20:.2f} MiB" for size in astuple(plan))
    return (
        f"memory: activations {peak} at once (one input and one output: {bound}), {planned} allocated for them; "
        f"scratch {scratch}; weights {weights}"
    )


def target_lines(made: "Executable") -> list[str]:
    """Each target, and what its kernels were chosen by."""
    chosen = {variant.target: variant.chosen_by for variant in (*made.variants, *made.others)}
    return [line for target, by in chosen.items() for line in (target, by) if line]


def costs_table(ours: "CpuFamily", known: "CpuFamily") -> str:
    """The costs of a CPU as they were measured, beside those that are known of it."""
    sides = [{**asdict(family.costs), "l2_bytes": family.l2_bytes, "fmas": family.fmas} for family in (ours, known)]
    rows = [
        (name, f"{value:.3g}" if isinstance(value, float) else str(value), str(sides[1][name]))
        for name, value in sides[0].items()
    ]
    return columns(("cost", "measured", known.origin), rows)


def batch_line(made: "Executable", variant: "Variant") -> str:
    """A batch, its time for a sample where it was measured, and whether runs of other numbers of samples use it."""
    pace = "" if variant.seconds is None else f": {variant.seconds / variant.batch * 1e3:.2f} ms a sample here"
    unused = "" if variant.batch in made.pieces else ", slower than a smaller one, which is taken for any number"
    return f"batch {variant.batch}{pace}{unused}"


def kernel_table(made: "Executable") -> str:
    """Each kernel with its algorithm, and the error of that algorithm on the layer's weights where one was measured."""
    rows = [
        (
            kernel.name,
            kernel.algorithm,
            f"{kernel.flops / 1e6:.1f}" if kernel.flops else "",
            "" if kernel.error is None else f"{kernel.error:.1e}",
        )
        for kernel in made.kernels
    ]
    return columns(("kernel", "algorithm", "MFLOP", "error"), rows, left=2)


def top_table(values: Sequence[tuple[int, float]]) -> str:
    """Flat indices and values."""
    return columns(("index", "value"), [(str(index), f"{value:.6g}") for index, value in values], left=0)


def tuning_table(result: "TuneResult") -> str:
    """Each kernel with its trials and its best time."""
    rows = [(t.name, str(t.trials), f"{t.best_seconds * 1e6:.1f}" if t.trials else "-") for t in result.tasks]
    return columns(("kernel", "trials", "best us"), rows)


def profile_table(profile: "Profile") -> str:
    """Each call of a kernel, in order, and the sum."""
    peak = profile.peak_flops
    rows = [
        (
            layer.kernel,
            layer.algorithm,
            f"{layer.seconds * 1e3:.3f}",
            f"{layer.share:.1%}",
            f"{layer.flops / layer.seconds / 1e9:.1f}" if layer.flops and layer.seconds else "",
            f"{layer.flops / layer.seconds / peak:.0%}" if layer.flops and layer.seconds and peak else "",
        )
        for layer in profile.layers
    ]
    rows.append(("sum of kernels", "", f"{profile.kernel_seconds * 1e3:.3f}", f"{1:.1%}", "", ""))
    lines = [columns(("kernel", "algorithm", "ms", "share", "GFLOP/s", "of peak"), rows, left=2)]
    lines.append(f"whole run: {profile.run_seconds * 1e3:.3f} ms without instruments; medians of {profile.runs} runs")
    if any(layer.flops for layer in profile.layers):
        lines.append("GFLOP/s count the arithmetic of the direct form; Winograd's does less, and may exceed the peak")
    if peak:
        lines.append(f"peak: {peak / 1e9:.0f} GFLOP/s in float32, measured here on {profile.threads} threads (registers only)")
    return "\n".join(lines)
