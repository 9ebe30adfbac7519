"""How exact `fuse` is, how long it takes, what it needs, and what it gains.

    python -m benchmarks.fuse [-o benchmarks/results/fuse-cpu.md] [--only NAME …] [--quick]

Models      those of timm and transformers that have blocks to fuse, and RepVGG-A0, -B1g4 and -B3, at their own resolution with
            random weights: merges, convs, errors, seconds, memory, speed-up (`fuse_measure.py`)
Blocks      one of each published family (`tests/catalogue.py`), fused by the cost model and wherever it is exact
Block types the rows of the paper's Tables 6 and 7, at 64 channels and 56 x 56: speed-up
Frontends   RepVGG-A0 and -B1g4 through each: errors; `none` where there is nothing to compare in (ONNX Runtime has no float64)
Seconds     of each step for RepVGG-A0 and -B3, and of a fuse of 16,000 ONNX nodes

Errors are relative to the largest output: in float64 with the new weights not rounded, and as shipped in float32. Every model
is measured in a process of its own. `--quick` takes few, at small sizes, once each: to see that it works.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam_compiler
from benchmarks import page
from benchmarks.fuse_measure import Measured, Pair, exported, interleaved, measure, onnx_blocks, onnx_pair, seconds
from benchmarks.fuse_zoo import WITH_REGIONS, Subject, boxed, foreign_models, outputs, timm_subject, transformers_subject, worst
from reparam_compiler.checking.onnx_written import compare_fused_onnx
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.zoo.blocks import BLOCKS, Site, stage_of_blocks
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from reparam_compiler.zoo.repvgg import REPVGG

SIZE, SMALL = 224, 64
QUICK = ("RepVGG-A0", "mobileone_s0", "textnet")
NODES = 16_000
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Table:
    """A part of the page. rows: the cells by the names of their columns."""

    title: str
    rows: Rows

    def text(self) -> str:
        """As markdown."""
        if not self.rows:
            return f"## {self.title}\n\nnothing measured\n"
        columns = list(self.rows[0])
        lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in self.rows]
        return f"## {self.title}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Prints the tables, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="names of models; leaves the other tables out")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    quick = arguments.quick
    measured = list(_models(arguments.only, quick))
    tables = [Table("Models", [_row(name, found) for name, found in measured])]
    if not arguments.only:
        tables += [
            Table("Blocks", _rows(_blocks)),
            Table("Block types", _rows(_block_types, 1.0 if quick else 3.0)),
            Table("Frontends", [row for name in (("A0",) if quick else ("A0", "B1g4")) for row in _rows(_errors, name, quick)]),
            Table("Seconds", [row for run in _steps(quick) for row in run]),
        ]
    text = "\n".join(table.text() for table in tables)
    print(text)
    if arguments.output:
        refused = {name: found.refused for name, found in measured if isinstance(found, Measured)}
        _write(arguments.output, tables, refused)


def _models(only: Sequence[str], quick: bool) -> Iterator[tuple[str, Measured | str]]:
    """A name and what was found, for each model."""
    for subject in _subjects(quick):
        if subject.name in only or (not only and (not quick or subject.name in QUICK)):
            print(f"{subject.name} …", file=sys.stderr, flush=True)
            yield subject.name, boxed(measure, subject, 0.5 if quick else 6.0)


def _subjects(quick: bool) -> list[Subject]:
    """RepVGG, the smallest of each module of timm at its own resolution, transformers' four at their own width."""
    size = SMALL if quick else SIZE
    repvgg = [Subject(f"RepVGG-{name}", "zoo", lambda name=name: repvgg(name, size)) for name in ("A0", "B1g4", "B3")]
    of_timm = [timm_subject(module, names[0], small=quick) for module, names in WITH_REGIONS.items()]
    return [*repvgg, *of_timm, *(transformers_subject(name, small=quick) for name in foreign_models.CONFIGURED)]


def repvgg(name: str, size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A RepVGG with random weights and norms, and an image."""
    torch.manual_seed(0)
    model = REPVGG[name]().eval()
    randomise_batch_norm(model, 0)
    return model, (torch.randn(1, 3, size, size),)


def _row(name: str, found: Measured | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"model": name, "input": found}
    fused = None if found.merges is None or found.left is None else found.merges - found.left
    return {
        "model": name,
        "input": ", ".join("x".join(map(str, shape)) for shape in found.inputs),
        "merges": found.merges,
        "fused": fused,
        "refused": found.left,
        "convs": f"{found.convs[0]} → {found.convs[1]}",
        "own": found.own,
        "float64": found.exact if found.exact is not None else found.proof,
        "float32": found.shipped,
        "s": found.proven,
        "s, no proof": found.quick,
        "weights, MB": round(found.weights / 1e6),
        "memory": f"{found.peak:.1f}x",
        "eager, ms": _pair(found.eager),
        "ONNX Runtime, ms": _pair(found.onnx),
    }


def _pair(pair: Pair | None) -> str | None:
    return None if pair is None else f"{pair.training:.1f} → {pair.fused:.1f} ({pair.speed_up:.2f}x)"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.2f}"
    return "" if value is None else str(value)


def _rows(function: Callable[..., Rows], *arguments: Any) -> Rows:
    """The rows of a table, from a process of its own."""
    found = boxed(function, *arguments, limit=600)
    return [{"": found}] if isinstance(found, str) else found


def _blocks() -> Rows:
    """A row for each family."""
    from tests.support.catalogue import ENTRIES
    from tests.support.catalogue_parts import built

    rows = []
    for entry in ENTRIES.values():
        model, x = built(entry.make)
        expected, row = outputs(model, (x,)), {"family": entry.name}
        for policy in ("cost", "always"):
            fused, report = reparam_compiler.fuse(deep_copy(model), (x,), policy=policy, return_report=True)
            row |= {
                f"{policy}: convs": f"{report.before.convs} → {report.after.convs}",
                f"{policy}: refused": len(report.refusals),
            }
            row |= {f"{policy}: float64": worst(expected, outputs(fused, (x,)))}
        rows.append(row)
    return rows


def _block_types(budget: float) -> Rows:
    """A row for each block type of the paper's tables."""
    rows = []
    for name in BLOCKS:
        torch.manual_seed(0)
        block = randomise_batch_norm(stage_of_blocks([Site(64, 64), Site(64, 64)], name).eval())
        inputs = (torch.randn(1, 64, 56, 56),)
        fused, report = reparam_compiler.fuse(block, inputs, return_report=True)
        runs = {"training": lambda b=block, x=inputs: outputs(b, x), "fused": lambda f=fused, x=inputs: outputs(f, x)}
        times = interleaved(runs | onnx_pair(block, inputs), budget)
        row = {"two blocks": name, "convs": f"{report.before.convs} → {report.after.convs}"}
        row |= {"eager, ms": _pair(Pair(times["training"], times["fused"]))}
        rows.append(row | {"ONNX Runtime, ms": _pair(Pair(times["onnx, training"], times["onnx, fused"]))})
    return rows


def _errors(name: str, quick: bool) -> Rows:
    """A row for each frontend."""
    model, (x,) = repvgg(name, SMALL if quick else SIZE)
    rows: Rows = []
    for frontend, traced in (("torch.fx", torch.fx.symbolic_trace(model)), ("torch.export", torch.export.export(model, (x,)))):
        fused, report = reparam_compiler.fuse(traced, (x,), return_report=True)
        run = fused.module() if frontend == "torch.export" else fused
        shipped = worst(outputs(model, (x,)), outputs(run, (x,)))
        exact = None if report.whole_model is None else report.whole_model.difference.relative
        rows.append({"model": name, "frontend": frontend, "float64": exact, "float32": shipped})
    for exporter in (False, True):
        proto = exported(model, (x,), dynamo=exporter)
        reading = OnnxFrontend().read(proto)
        compared = compare_fused_onnx(proto, reading.write(pipeline.run(reading.graph).graph), (x.numpy(),))
        relative = None if compared is None else compared.difference.relative
        kind = "ONNX, dynamo" if exporter else "ONNX, TorchScript"
        rows.append({"model": name, "frontend": kind, "float64": None, "float32": relative})
    return rows


def _steps(quick: bool) -> list[Rows]:
    """Rows for RepVGG and for a large ONNX graph."""
    names = ("A0",) if quick else ("A0", "B3")
    repeats, nodes = (1, NODES // 10) if quick else (3, NODES)
    return [*(_rows(_repvgg_steps, name, SMALL if quick else SIZE, repeats) for name in names), _rows(_onnx_steps, nodes)]


def _repvgg_steps(name: str, size: int, repeats: int) -> Rows:
    model, inputs = repvgg(name, size)
    traced = torch.fx.symbolic_trace(model)
    fused = reparam_compiler.fuse(traced, inputs, verify=False)
    steps: dict[str, Callable[[], object]] = {
        "fuse, verify=False": lambda: reparam_compiler.fuse(traced, verify=False),
        "fuse, regions proven": lambda: reparam_compiler.fuse(traced),
        f"fuse, regions proven, whole model compared at {size}": lambda: reparam_compiler.fuse(traced, inputs),
        "prune 0.3 of the fused model": lambda: reparam_compiler.prune(fused, inputs, ratio=0.3),
    }
    return [{"model": f"RepVGG-{name}", "step": step, "s": seconds(run, repeats)} for step, run in steps.items()]


def _onnx_steps(nodes: int) -> Rows:
    model = onnx_blocks(nodes // 8)
    steps = {"fuse, verify=False": False, "fuse, regions proven": True}
    return [
        {"model": f"{nodes} ONNX nodes", "step": step, "s": seconds(lambda v=verify: reparam_compiler.fuse(model, verify=v), 1)}
        for step, verify in steps.items()
    ]


def _write(output: Path, tables: Sequence[Table], refused: dict[str, Any]) -> None:
    about = page.facts(
        " ".join(["python -m benchmarks.fuse", *sys.argv[1:]]),
        cpu=f"{page.processor()}, {len(os.sched_getaffinity(0))} cores; one thread",
        versions=page.versions("torch", "onnx", "onnxruntime", "timm", "transformers", "numpy"),
    )
    text = page.head("What fuse does, on a CPU", about) + "\n".join(table.text() for table in tables)
    record = {**about, "tables": {table.title: table.rows for table in tables}, "refused": refused}
    page.write(output, text, record)


if __name__ == "__main__":
    main()
