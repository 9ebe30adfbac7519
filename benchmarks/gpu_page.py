"""The GPU benchmark's results as a page: facts, a table for each part, errors, and what was left out."""

from collections.abc import Mapping, Sequence

from benchmarks.gpu_engines import ENGINES
from benchmarks.gpu_engines import PART as ENGINES_PART
from benchmarks.gpu_kernel_sizes import PAPER as PAPER_KERNEL_SIZES
from benchmarks.gpu_kernel_sizes import PART as KERNEL_SIZES_PART
from benchmarks.gpu_kernel_sizes import tera_operations
from benchmarks.gpu_measure import Measurement, Results
from benchmarks.gpu_segmentation import PAPER as PAPER_SEGMENTATION
from benchmarks.gpu_segmentation import PART as SEGMENTATION_PART
from benchmarks.gpu_settings import Settings
from benchmarks.gpu_zoo import FOLDED, FUSED, TRAINING
from benchmarks.gpu_zoo import PART as ZOO_PART


def markdown(results: Results, settings: Settings, facts: Mapping[str, str]) -> str:
    """The whole page."""
    page = ["# RepVGG on a GPU", ""]
    page += [f"- {key}: {value}" for key, value in facts.items()]
    tables = {
        ENGINES_PART: engines_table,
        ZOO_PART: zoo_tables,
        KERNEL_SIZES_PART: kernel_sizes_table,
        SEGMENTATION_PART: segmentation_table,
    }
    for part in settings.parts:
        page += ["", *tables[part](results, settings)]
    page += ["", "## Relative errors", ""]
    page += [
        "max |a - b| / max |b|: of fusing, against the training form in fp32; of an engine, against eager in its mode.",
        "",
    ]
    page += _table(["what", "relative error"], [[what, f"{error:.1e}"] for what, error in results.errors.items()])
    page += ["", "## Left out", "", *([f"- {what}" for what in results.left_out] or ["Nothing."]), ""]
    return "\n".join(page)


def engines_table(results: Results, settings: Settings) -> list[str]:
    """Every engine's speed in each mode and batch, and ours over the best of the others."""
    rows = []
    for net, mode, batch in dict.fromkeys((m.net, m.mode, m.batch) for m in results.measurements if m.part == ENGINES_PART):
        found = [results.find(ENGINES_PART, net, engine, mode, batch) for engine in ENGINES]
        *others, ours = [m.examples_per_second if m else None for m in found]
        best = max((rate for rate in others if rate is not None), default=None)
        rows.append([net, mode, str(batch), *map(_rate, found), _ratio(ours, best)])
    heads = ["net, fused", "mode", "batch", *(f"{engine}, ex/s" for engine in ENGINES), "ours : best other"]
    return ["## Engines", "", *_table(heads, rows)]


def zoo_tables(results: Results, settings: Settings) -> list[str]:
    """The paper's ratios beside ours, then training form against fused, for each mode and batch."""
    columns = [(mode, batch) for batch in settings.batches for mode in settings.modes]
    rows = []
    for group in (group for group in settings.groups if group.resnet is not None):
        pairs = [
            (results.find(ZOO_PART, group.repvgg, FUSED, *column), results.find(ZOO_PART, group.resnet, FOLDED, *column))
            for column in columns
        ]
        ours = [_ratio(a and a.examples_per_second, b and b.examples_per_second) for a, b in pairs]
        rows.append([f"{group.repvgg} : {group.resnet}", f"{group.paper_ratio}", *ours])
    heads = ["pair", "paper (1080Ti, fp32, batch 128)", *(f"{mode}, batch {batch}" for mode, batch in columns)]
    page = ["## Fused RepVGG : folded ResNet, examples a second, eager", "", *_table(heads, rows)]
    for mode, batch in columns:
        rows = []
        for group in settings.groups:
            before, after = (results.find(ZOO_PART, group.repvgg, form, mode, batch) for form in (TRAINING, FUSED))
            if before and after:
                rows.append([group.repvgg, *_before_and_after(before, after)])
            if resnet := results.find(ZOO_PART, group.resnet, FOLDED, mode, batch):
                rows.append([resnet.net, "", "", *_cells(resnet), ""])
        page += ["", f"### {mode}, batch {batch}", "", *_table(BEFORE_AND_AFTER, rows)]
    return page


def kernel_sizes_table(results: Results, settings: Settings) -> list[str]:
    """Milliseconds and TFLOPS by kernel size, beside the paper's."""
    rows = []
    for m in (m for m in results.measurements if m.part == KERNEL_SIZES_PART):
        milliseconds, rate = PAPER_KERNEL_SIZES[int(m.net[0])]
        speed = tera_operations(int(m.net[0]), settings.kernel_size, m.milliseconds)
        rows.append([m.net, m.mode, m.form, f"{m.milliseconds:.2f}", f"{speed:.2f}", f"{milliseconds}", f"{rate}"])
    conv = settings.kernel_size
    title = f"## One conv by kernel size: {conv.channels} channels, {conv.image} x {conv.image}, batch {conv.batch}"
    heads = ["kernel", "mode", "engine", "ms", "TFLOPS", "paper, ms (1080Ti, fp32)", "paper, TFLOPS"]
    return [title, "", "A multiply-add counts as two operations.", "", *_table(heads, rows)]


def segmentation_table(results: Results, settings: Settings) -> list[str]:
    """PSPNet by backbone, beside the paper's speed."""
    wanted, rows = settings.segmentation, []
    for backbone, mode in dict.fromkeys((m.net, m.mode) for m in results.measurements if m.part == SEGMENTATION_PART):
        before, after = (results.find(SEGMENTATION_PART, backbone, form, mode, wanted.batch) for form in (TRAINING, FUSED))
        if before and after:
            paper = PAPER_SEGMENTATION.get(backbone)
            rows.append([f"{backbone}, {mode}", *_before_and_after(before, after), "" if paper is None else f"{paper}"])
    title = f"## PSPNet at {wanted.image} x {wanted.image}, batch {wanted.batch}, eager"
    return [title, "", *_table([*BEFORE_AND_AFTER, "paper, ex/s (1080Ti, fp32)"], rows)]


BEFORE_AND_AFTER = ("net", "training form, ex/s", "peak MB", "fused, ex/s", "peak MB", "gain")


def _before_and_after(before: Measurement, after: Measurement) -> list[str]:
    return [*_cells(before), *_cells(after), _ratio(after.examples_per_second, before.examples_per_second)]


def _ratio(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None else f"{a / b:.2f}"


def _rate(m: Measurement | None) -> str:
    return "" if m is None else f"{m.examples_per_second:.1f}"


def _cells(m: Measurement) -> list[str]:
    return [_rate(m), "" if m.peak_megabytes is None else f"{m.peak_megabytes:.0f}"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
