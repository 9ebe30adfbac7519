"""What this machine's core spends its cycles on: the constants that `lowering.conv.choice` counts with, measured and fitted.

    python -m benchmarks.cpu_costs [-o benchmarks/results/cpu-costs.md] [--rounds 8] [--steps 400]

Layers    3x3 convs of RepVGG, ResNet, HRNet and U-Net, some of stride 2 and of groups, stems, 1x1 convs (`SHAPES`)
Kernels   of each layer the algorithms that the rule finds best by today's constants and by other ones, blocked and not
Timing    one thread, weights cold (each run reads others, 640 MB in a row), the least over rounds through all kernels
Fit       random steps from several starts, kept where they lessen: what the rule's choice loses against the best kernel, on
          average over the layers and of the sum of their times, and how far estimates lie from times

The row for `lowering/cpu/families.py` is printed; whether the choice by it is any better is what the page says. Beside it
stands what `compile` would count by if the CPU were in no table: what it measures in seconds
(`lowering/cpu/measured_family.py`), or what it would borrow at worst, the costs of the most different CPU.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from tvm.target import Target

from benchmarks import page
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape
from reparam_compiler.lowering.conv.choice import candidates, cycles
from reparam_compiler.lowering.cpu.families import FAMILIES, Costs
from reparam_compiler.lowering.cpu.machine import VectorUnit, vector_unit
from reparam_compiler.lowering.cpu.measured_family import conv
from reparam_compiler.lowering.cpu.measured_family import measured as family_measured
from reparam_compiler.lowering.cpu.peak import measure_peak
from reparam_compiler.lowering.cpu.timing import least_seconds
from reparam_compiler.lowering.target import resolve

ARENA = 160_000_000
"""float32 elements that weights are taken from in turn."""
LIKELY = 2.0
"""Kernels slower than so many times a layer's best do not count among the errors of estimates: nobody would take them."""
STARTS = 3

SHAPES = (
    conv(512, 512, 7), conv(256, 256, 14), conv(128, 128, 28), conv(64, 64, 56), conv(192, 192, 14), conv(96, 96, 28),
    conv(48, 48, 56), conv(32, 32, 112), conv(64, 64, 112), conv(64, 32, 224), conv(128, 32, 28), conv(36, 36, 28),
    conv(144, 144, 7), conv(256, 256, 7), conv(512, 512, 14),
    conv(256, 512, 14, stride=2), conv(256, 256, 28, stride=2), conv(128, 128, 56, stride=2), conv(48, 48, 112, stride=2),
    conv(192, 1280, 14, stride=2), conv(3, 64, 224, 7, 2), conv(3, 32, 224, stride=2),
    conv(64, 256, 56, 1), conv(256, 64, 56, 1), conv(512, 128, 28, 1), conv(1024, 256, 14, 1), conv(2048, 512, 7, 1),
    conv(96, 24, 56, 1), conv(16, 96, 112, 1), conv(320, 1280, 7, 1),
    conv(24, 24, 56, groups=3), conv(152, 152, 14, groups=19),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Score:
    """How good constants are. regret: mean log of the chosen kernel's time over the best's. lost: of the sum of the best times.

    spread, bias: standard deviation and mean of the log of estimates over times.
    """

    regret: float
    lost: float
    spread: float
    bias: float

    @property
    def total(self) -> float:
        """What the fit lessens."""
        return self.regret + self.lost + self.spread / 2 + abs(self.bias) / 5


Times = dict[ConvShape, dict[Algorithm, float]]
"""Seconds of the kernels of each layer."""


def rivals(shape: ConvShape, unit: VectorUnit) -> list[Algorithm]:
    """The kernels of a layer that constants choose among: by today's, by cheap transforms, by slow memory; blocked and not."""
    others = (
        unit.costs,
        replace(unit.costs, transform=0.03),
        replace(unit.costs, transform=0.15),
        replace(unit.costs, cold_bytes=2.0),
    )
    units = [replace(unit, costs=costs, l2_bytes=size) for costs in others for size in (512 * 1024, 2048 * 1024)]
    found = {algorithm for each in units for algorithm in candidates(shape, each)[:4]}
    return sorted(found | {replace(algorithm, block=0) for algorithm in found}, key=repr)


def measured(shapes: Sequence[ConvShape], target: Target, unit: VectorUnit, rounds: int) -> Times:
    """The least seconds of each kernel with weights from memory."""
    kernels = [(shape, each) for shape in shapes for each in rivals(shape, unit)]
    print(f"{len(kernels)} kernels", file=sys.stderr, flush=True)
    times: Times = {}
    for (shape, algorithm), seconds in least_seconds(kernels, target, unit, rounds=rounds, arena=ARENA).items():
        times.setdefault(shape, {})[algorithm] = seconds
    return times


def _estimates(shape: ConvShape, algorithms: Iterable[Algorithm], unit: VectorUnit, hertz: float) -> dict[Algorithm, float]:
    """Seconds of each kernel by a unit's constants."""
    return {algorithm: cycles(shape, algorithm, unit) / hertz for algorithm in algorithms}


def _least(seconds: Mapping[Algorithm, float]) -> Algorithm:
    return min(seconds, key=lambda algorithm: seconds[algorithm])


def score(times: Times, unit: VectorUnit, hertz: float) -> Score:
    """How a unit's constants choose among the measured kernels. hertz: cycles a second."""
    regrets, errors, lost, best = [], [], 0.0, 0.0
    for shape, seconds in times.items():
        estimates = _estimates(shape, seconds, unit, hertz)
        chosen, least = seconds[_least(estimates)], min(seconds.values())
        regrets.append(math.log(chosen / least))
        lost, best = lost + chosen - least, best + least
        errors += [math.log(estimates[a] / taken) for a, taken in seconds.items() if taken < LIKELY * least]
    return Score(float(np.mean(regrets)), lost / best, float(np.std(errors)), float(np.mean(errors)))


def fitted(times: Times, unit: VectorUnit, hertz: float, steps: int) -> VectorUnit:
    """The unit of the least score that random steps find, from its own constants and from others."""
    found = []
    for seed in range(STARTS):
        random = np.random.default_rng(seed)
        now, total = unit, score(times, unit, hertz).total
        for _ in range(steps):
            moved = {field.name: _moved(getattr(now.costs, field.name), random) for field in fields(Costs)}
            size = int(random.choice((256, 512, 640, 1024, 2048))) * 1024 if random.random() < 0.1 else now.l2_bytes
            new = replace(now, costs=Costs(**moved), l2_bytes=size)
            if (other := score(times, new, hertz).total) < total:
                now, total = new, other
        found.append((total, seed, now))
    return min(found)[2]


def as_if_unknown(target: Target, unit: VectorUnit) -> tuple[VectorUnit, VectorUnit]:
    """What `compile` would count by if this CPU were in no table: measured in seconds, and borrowed from the most unlike."""
    others = [family for family in FAMILIES if family.costs != unit.costs]
    found = family_measured(target, starts=list(dict.fromkeys(family.costs for family in others)))
    far = max(others, key=lambda family: float(np.abs(np.log(astuple(family.costs)) - np.log(astuple(unit.costs))).sum()))
    quick, borrowed = (replace(unit, costs=each.costs, l2_bytes=each.l2_bytes, fmas=each.fmas) for each in (found, far))
    return quick, borrowed


def _moved(value: float, random: np.random.Generator) -> float:
    return value * math.exp(0.3 * random.normal()) if random.random() < 0.4 else value


def table(times: Times, unit: VectorUnit, hertz: float) -> str:
    """Of each layer what the constants choose, what is best, and what that costs."""
    lines = ["| layer | chosen | ms | estimate | best | ms |", "| --- | --- | --- | --- | --- | --- |"]
    for shape, seconds in times.items():
        estimates = _estimates(shape, seconds, unit, hertz)
        chosen, best = _least(estimates), _least(seconds)
        layer = f"{shape.channels_in} → {shape.channels_out} at {shape.height}, {shape.kernel[0]}x{shape.kernel[1]}"
        layer += f", stride {shape.stride[0]}" * (shape.stride != (1, 1)) + f", {shape.groups} groups" * (shape.groups > 1)
        numbers = [f"{1e3 * value:.3f}" for value in (seconds[chosen], estimates[chosen], seconds[best])]
        lines.append(f"| {layer} | {_named(chosen)} | {numbers[0]} | {numbers[1]} | {_named(best)} | {numbers[2]} |")
    return "\n".join(lines)


def _named(algorithm: Algorithm) -> str:
    tile = f"{algorithm.tile.rows}x{algorithm.tile.columns}"
    return f"{algorithm}, {tile}" + f", blocks of {algorithm.block}" * bool(algorithm.block)


def _row(unit: VectorUnit) -> str:
    costs = ", ".join(f"{name}={value:.2g}" for name, value in asdict(unit.costs).items())
    return f"Costs({costs}), l2_bytes={unit.l2_bytes // 1024} * KIB"


def main() -> None:
    """Prints the row for the table of families, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = "1"
    target, start = resolve(None), time.perf_counter()
    unit = replace(vector_unit(target), threads=1)
    hertz = measure_peak(target, 1) / (2 * unit.lanes("float32") * unit.fmas)
    times = measured(SHAPES, target, unit, options.rounds)
    new = fitted(times, unit, hertz, options.steps)
    quick, borrowed = as_if_unknown(target, unit)
    print(_row(new))
    about = page.facts(
        f"python -m benchmarks.cpu_costs --rounds {options.rounds} --steps {options.steps}",
        cpu=f"{page.processor()}, LLVM's {target.attrs['mcpu']}, {hertz / 1e9:.2f} GHz by its peak",
        versions=page.versions("apache-tvm", "numpy"),
        took=f"{time.perf_counter() - start:.0f} s",
    )
    units = {"shipped": unit, "fitted here": new, "measured in seconds": quick, "borrowed": borrowed}
    scores = {name: score(times, each, hertz) for name, each in units.items()}
    rows = "\n".join(
        f"| {name} | {_row(units[name])} | {math.expm1(s.regret):.1%} | {s.lost:.1%} | {math.expm1(s.spread):.0%} |"
        for name, s in scores.items()
    )
    header = "| constants | | slower than the best, mean | of the sum | spread of estimates |\n| --- | --- | --- | --- | --- |"
    summary = f"{header}\n{rows}\n"
    text = (
        page.head("What a core's cycles go to", about)
        + f"{summary}\n## By the shipped constants\n\n{table(times, unit, hertz)}\n"
    )
    print(text)
    if options.output:
        record = [{"layer": repr(s), "kernel": repr(a), "seconds": t} for s, found in times.items() for a, t in found.items()]
        page.write(options.output, text, record)


if __name__ == "__main__":
    main()
