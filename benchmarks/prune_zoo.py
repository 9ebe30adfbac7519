"""What prune makes of the families of timm and torchvision, next to Torch-Pruning in the same run.

    python -m benchmarks.prune_zoo [--only NAME …] [--ratio 0.3] [-o benchmarks/results/prune-zoo.md]

Every model has random weights at its smallest input (`tests/zoo/foreign_models.py`); nothing is downloaded. Ours is exported
with `torch.export` and pruned by L1, ratios exact (`round_to=1`), without repair; the pruned program is run in float64 and
compared with the masked reference. The peer is called as its README does: `MetaPruner` with `MagnitudeImportance(p=1)`, the
classifier ignored. It counts as a success where the pruned model runs and has fewer parameters; that it computes the right
thing is not checked.

Multiply-adds are those that torch's `FlopCounterMode` counts, halved: convs, linear layers, products of attention. CPU seconds
are `time.process_time` on one thread. Ours are of all that is done with an exported program: reading, coupling, importance, the
proof in float64, writing, and torch's `module()`, which makes a program run; those of reading and of `module()` are given apart
too, and beside them those of the export. The peer's are of its dependency graph, for which it traces the model, and its step in
place; it proves nothing. Each model has a process of its own and a time limit. Both tools first prune a net of two convs, so
that what they load when first used is not counted; and what imports and the export left on the heap is frozen, so that the
collector does not search it within either's time.
"""

import argparse
import copy
import gc
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import page
from benchmarks.fuse_zoo import boxed
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.pruning.pipeline import prune
from reparam_compiler.passes.pruning.slice_channels import masked
from tests.support import foreign_models

LIMIT = 180.0
"""Seconds for one model and one tool."""
TOLERANCE = 1e-9
ROUNDED = 1e-6
"""The same for programs that store weights which they computed before."""
FAMILIES: dict[str, tuple[str, ...]] = {
    "resnet": ("resnet18", "resnet50"),
    "resnext": ("resnext50_32x4d",),
    "regnet": ("regnetx_002", "regnety_002"),
    "densenet": ("densenet121",),
    "inception": ("inception_v3", "inception_v4"),
    "vgg": ("vgg11_bn", "vgg16"),
    "mobilenet": ("mobilenetv2_050", "mobilenetv3_small_050"),
    "efficientnet": ("efficientnet_b0", "tinynet_e"),
    "mixnet": ("mixnet_s",),
    "ghostnet": ("ghostnet_050", "ghostnetv2_100", "ghostnetv3_050"),
    "shufflenet": ("torchvision.shufflenet_v2_x0_5",),
    "squeezenet": ("torchvision.squeezenet1_1",),
    "res2net": ("res2net50_26w_4s",),
    "resnest": ("resnest14d",),
    "skresnet": ("skresnet18",),
    "dpn": ("dpn48b",),
    "cspnet": ("cspresnet50", "cspdarknet53"),
    "dla": ("dla34",),
    "hrnet": ("hrnet_w18_small",),
    "convnext": ("convnext_atto", "convnextv2_atto"),
    "poolformer": ("poolformer_s12",),
    "nf_resnet": ("nf_resnet50",),
    "edgenext": ("edgenext_xx_small",),
    "efficientformer": ("efficientformer_l1", "efficientformerv2_s0"),
    "mobilevit": ("mobilevit_xxs", "mobilevitv2_050"),
    "levit": ("levit_128s",),
    "mixer": ("mixer_s32_224",),
    "vit": ("vit_tiny_patch16_224", "deit_tiny_patch16_224"),
    "swin": ("swin_tiny_patch4_window7_224",),
    "repvgg": ("repvgg_a0",),
    "mobileone": ("mobileone_s0",),
    "fastvit": ("fastvit_t8",),
    "repvit": ("repvit_m0_9",),
    "xception": ("xception41",),
    "selecsls": ("selecsls42",),
    "hardcorenas": ("hardcorenas_a",),
    "visformer": ("visformer_tiny",),
    "coat": ("coat_lite_tiny",),
    "pit": ("pit_ti_224",),
    "gcresnet": ("gcresnet33ts",),
    "maxvit": ("maxvit_tiny_rw_224",),
    "pvt": ("pvt_v2_b0",),
    "xcit": ("xcit_nano_12_p16_224",),
    "mnasnet": ("mnasnet_050", "semnasnet_050"),
    "fbnet": ("fbnetc_100",),
    "lcnet": ("lcnet_035",),
    "rexnet": ("rexnet_100",),
    "vovnet": ("vovnet39a",),
    "efficientvit": ("efficientvit_b0",),
}


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a tool made of a model.

    params, multiply_adds: the share that is left. error: of ours in float64 against its masked reference, relative; None for
    the peer. written_error: of the program that a user gets, in float64 against the same; a weight that the model computes is
    stored in its float32. free, pinned: channels that could leave, and those that could not, with the reasons.
    seconds: of CPU, for all but the export. reading_seconds, module_seconds: those of them for reading the program, and for
    torch to make a module of the pruned one. export_seconds: for torch.export.
    """

    params: float
    multiply_adds: float
    seconds: float
    error: float | None = None
    written_error: float | None = None
    free: int = 0
    pinned: int = 0
    reasons: tuple[str, ...] = ()
    export_seconds: float = 0.0
    reading_seconds: float = 0.0
    module_seconds: float = 0.0


def model_of(name: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights, in evaluation mode, and an image that it takes."""
    if not name.startswith("torchvision."):
        return foreign_models.timm_model(name)
    foreign_models.timm()  # defines what torchvision's own library would
    from torchvision import models

    torch.manual_seed(0)
    return foreign_models.randomised(getattr(models, name.partition(".")[2])(weights=None)), foreign_models.normal(1, 3, 96, 96)


def ours(name: str, ratio: float) -> Pruned:
    """The program, pruned, written back, run."""
    model, x = model_of(name)
    small, one = _small()
    first = torch.export.export(small, (one,))
    reading = frontend_for(first).read(first)
    reading.write(prune(reading.graph, ratio=ratio, round_to=1).graph)
    start = time.process_time()
    program = torch.export.export(model, (x,))
    exported = time.process_time()
    _settle()
    settled = time.process_time()
    reading = frontend_for(program).read(program)
    read = time.process_time()
    result = prune(reading.graph, ratio=ratio, round_to=1)
    pruned = reading.write(result.graph)
    wrote = time.process_time()
    written = pruned.module()
    done = time.process_time()
    source = next(node.id for node in reading.graph if isinstance(node.op, ops.Input))
    hidden = masked(reading.graph, result.groups, result.keep)
    return Pruned(
        _params(written) / _params(model),
        _multiply_adds(written, x) / _multiply_adds(model, x),
        done - settled,
        result.plan.relative_error,
        _written_error(written, x, hidden, source),
        sum(family.before for family in result.plan.families),
        sum(family.width for family in result.plan.pinned),
        tuple(f"{family.name}: {family.reason}" for family in result.plan.pinned if "is a model output" not in family.reason),
        exported - start,
        read - settled,
        done - wrote,
    )


def _written_error(written: nn.Module, x: Tensor, hidden: Graph, source: str) -> float | None:
    """Of the model that a user gets, in float64; None for one that holds what cannot be run alone, or not in float64."""
    try:
        (expected,) = evaluate(hidden, {source: x}).values()
        return difference(expected, _first(copy.deepcopy(written).double()(x.double()))).relative
    except (RuntimeError, UnsupportedModelError):
        return None


def _first(value: Any) -> Tensor:
    found: Tensor = value[0] if isinstance(value, tuple | list) else value
    return found.detach()


def theirs(name: str, ratio: float) -> Pruned:
    """Torch-Pruning with its default calls."""
    import torch_pruning

    model, x = model_of(name)
    before = _params(model), _multiply_adds(model, x)

    def cut(net: nn.Module, example: Tensor) -> None:
        torch_pruning.pruner.MetaPruner(
            net,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=_classifier(net),
        ).step()

    cut(*_small())
    _settle()
    start = time.process_time()
    cut(model, x)
    seconds = time.process_time() - start
    left = _params(model) / before[0], _multiply_adds(model, x) / before[1]
    if left[0] >= 1:
        raise ValueError("nothing was pruned")
    return Pruned(*left, seconds)


def _settle() -> None:
    """Collects garbage, and takes what is left out of the collector's sight."""
    gc.collect()
    gc.freeze()


def _small() -> tuple[nn.Module, Tensor]:
    """A net of two convs, and an image for it."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), torch.randn(1, 3, 16, 16)


def _classifier(model: nn.Module) -> list[nn.Module]:
    """The layers that give the classes."""
    found: Any = model.get_classifier() if hasattr(model, "get_classifier") else None
    layers = [layer for layer in (found if isinstance(found, tuple | list) else [found]) if isinstance(layer, nn.Module)]
    if layers:
        return [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [[module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]]


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _multiply_adds(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:  # it watches gradients: without any it fails on a tuple of outputs
        model(x)
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True, slots=True)
class Row:
    """A model, and what each tool made of it: why there is nothing where one failed."""

    family: str
    name: str
    ours: Pruned | str
    theirs: Pruned | str


HEAD = (
    "| family | model | ours | error | written | params | multiply-adds | CPU s | reading | module() | export | pinned "
    "| Torch-Pruning | params | multiply-adds | CPU s |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def succeeded(row: Row) -> bool:
    """Whether ours pruned the model and the result equals the masked reference."""
    found = row.ours
    return (
        not isinstance(found, str)
        and found.error is not None
        and found.error <= TOLERANCE
        and (found.written_error or 0.0) <= ROUNDED
    )


def line(row: Row) -> str:
    """A row of the table."""
    cells = [row.family, row.name]
    if isinstance(row.ours, str):
        cells += [row.ours, *[""] * 9]
    else:
        mine = row.ours
        shares = [
            f"{mine.error:.0e}",
            "" if mine.written_error is None else f"{mine.written_error:.0e}",
            f"{mine.params:.2f}",
            f"{mine.multiply_adds:.2f}",
        ]
        cells += [
            "yes" if succeeded(row) else "no",
            *shares,
            f"{mine.seconds:.1f}",
            f"{mine.reading_seconds:.1f}",
            f"{mine.module_seconds:.1f}",
            f"{mine.export_seconds:.1f}",
            str(mine.pinned),
        ]
    if isinstance(row.theirs, str):
        cells += [row.theirs, "", "", ""]
    else:
        cells += ["yes", f"{row.theirs.params:.2f}", f"{row.theirs.multiply_adds:.2f}", f"{row.theirs.seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def summary(rows: Sequence[Row]) -> str:
    """How many succeeded, and the CPU seconds over the models that both handle."""
    both = [row for row in rows if succeeded(row) and not isinstance(row.theirs, str)]
    seconds = [sum(found.seconds for found in side if not isinstance(found, str)) for side in _sides(both)]
    mine = [row.ours for row in both if not isinstance(row.ours, str)]
    export, reading, module = (
        sum(getattr(found, f"{name}_seconds") for found in mine) for name in ("export", "reading", "module")
    )
    return (
        f"Ours: {sum(map(succeeded, rows))} of {len(rows)}, each equal to its masked reference to {TOLERANCE:.0e}. "
        f"Torch-Pruning: {sum(not isinstance(row.theirs, str) for row in rows)} of {len(rows)}. "
        f"CPU seconds over the {len(both)} that both prune: ours {seconds[0]:.1f}, of which {reading:.1f} "
        f"for reading and {module:.1f} for torch's module(); Torch-Pruning {seconds[1]:.1f}, so ours is "
        f"{seconds[0] / max(seconds[1], 1e-9):.2f} of it. The export, not counted, takes {export:.1f} more."
    )


def _sides(rows: Sequence[Row]) -> tuple[list[Pruned | str], list[Pruned | str]]:
    return [row.ours for row in rows], [row.theirs for row in rows]


def main() -> None:
    """Prints a line for each model, with what stayed below it, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="names of models or families")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each model and tool")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = [(family, name) for family, names in FAMILIES.items() for name in names]
    chosen = [pair for pair in chosen if not arguments.only or {*pair} & {*arguments.only}]
    tools: tuple[Callable[[str, float], Pruned], ...] = (ours, theirs)
    rows: list[Row] = []
    foreign_models.timm()  # once, and not in each process
    print("\n".join(HEAD))
    for family, name in chosen:
        rows.append(Row(family, name, *(boxed(tool, name, arguments.ratio, limit=arguments.limit) for tool in tools)))
        print(line(rows[-1]), flush=True)
        if not isinstance(rows[-1].ours, str):
            for reason in rows[-1].ours.reasons:
                print(f"      {reason}")
        if arguments.output:
            _write(arguments.output, rows, arguments.ratio)
    print(summary(rows))


def _write(output: Path, rows: Sequence[Row], ratio: float) -> None:
    versions = page.versions("torch", "timm", "torchvision", "torch-pruning")
    about = page.facts(
        f"python -m benchmarks.prune_zoo {shlex.join(sys.argv[1:])}", machine=f"{platform.machine()}, one thread; {versions}"
    )
    head = page.head("What prune makes of timm and torchvision", about, f"ratio {ratio} of every family, by L1")
    table = "\n".join([*HEAD, *map(line, rows)])
    page.write(output, f"{head}{summary(rows)}\n\n{table}\n", [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
