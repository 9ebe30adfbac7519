"""What `prune` shows without a MODEL: a trained RepVGG from training form to machine code, measured at every step.

    training form -> fused -> pruned (without repair, and with) -> compiled

accuracy       of 719 handwritten digits that were held out from training and from calibration
milliseconds   median of one image on one thread, all steps timed in turn, so that a machine that drifts does so for all
error          largest |logit - logit of the same function in float64| over the test images, relative to the largest logit
"""

import contextlib
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from reparam_compiler.api.compiling import compile
from reparam_compiler.api.fusing import fuse
from reparam_compiler.api.pruning import prune
from reparam_compiler.errors import TvmMissingError, UnrepairedPruneWarning
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.models.io import check_output, save_model
from reparam_compiler.zoo.digits import Images, accuracy, calibration_images, digits_repvgg, digits_split

ROUNDS = 200
CALIBRATION = 256
Logits = np.ndarray[Any, Any]
Run = Callable[[Images], Logits]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it is and what was measured.

    accuracy: from 0 to 1. error: against float64, relative; None where there is no function that it should be.
    milliseconds: of one image; None before it is timed.
    """

    name: str
    engine: str
    accuracy: float
    parameters: int
    error: float | None
    milliseconds: float | None = None


def run(console: Console, output: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the demonstration.

    Args:
        console: where words and the table go.
        output: the file to write the pruned model to, if any.
        options: arguments of `prune`.

    Returns:
        What `--json` prints: the steps, and what was left out.
    """
    started = time.perf_counter()
    one = (torch.from_numpy(np.array(digits_split().test_images[:1])),)
    demo = _Demo(console, one, digits_split().test_images)
    if output is not None:
        check_output(digits_repvgg(), output, example_inputs=one)
    console.print("[bold]A RepVGG trained on 1,078 handwritten digits[/]; accuracy is that on 719 others\n", highlight=False)
    with _one_thread():
        demo.fuse()
        demo.prune(options)
        if output is not None:
            save_model(demo.pruned, output, example_inputs=one)
        demo.compile()
        timed = _timed(demo.steps, demo.images[:1])
    console.print(_table(timed))
    for line in _closing(timed, time.perf_counter() - started, output):
        console.print(line, highlight=False, soft_wrap=True)
    return {
        "model": "digits RepVGG",
        "options": {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()},
        "steps": [asdict(step) for step in timed],
        "left_out": demo.left_out,
        "output": str(output) if output else None,
    }


@dataclass
class _Demo:
    """The demonstration, step by step; each is said as it is done.

    one: what the models are called with, one image. images: what they are tested on.
    fused, pruned: the models that earlier steps made. cut: what the pruned one is called.
    exact, exact_cut: the logits that the training form and the pruned model give for the images in float64.
    """

    console: Console
    one: tuple[Tensor]
    images: Images
    steps: list[tuple[Step, Run]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    model: nn.Module = field(default_factory=digits_repvgg)
    fused: nn.Module = field(init=False)
    pruned: nn.Module = field(init=False)
    cut: str = "pruned"
    exact: Logits = field(init=False)
    exact_cut: Logits = field(init=False)

    def fuse(self) -> None:
        """Training form and fused form."""
        self.exact = _in_float64(self.model, self.images)
        self._add("training form", self.model, self.exact, "a block is a 3x3, a 1x1 and an identity, each with its batch norm")
        self.fused, fusions = fuse(self.model, self.one, return_report=True)
        convs = f"{fusions.before.convs} convs and their batch norms are {fusions.after.convs} convs now: the same function"
        self._add("fused", self.fused, self.exact, convs)

    def prune(self, options: Mapping[str, Any]) -> None:
        """The fused form pruned without repair, and with it; options: arguments of `prune`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnrepairedPruneWarning)
            unrepaired = prune(self.fused, self.one, **dict(options) | {"importance": options.get("importance") or "l1"})
        self.cut = "pruned" if options.get("ratio") is None else f"pruned {options['ratio']:.0%}"
        self._add(f"{self.cut}, no repair", unrepaired, None, "channels ranked by their filters alone and cut, nothing else")
        images = calibration_images(CALIBRATION)
        self.pruned, report = prune(self.fused, self.one, calibration=images, return_report=True, **options)
        plan = report.plan
        mended = 0 if plan.repair is None else len(plan.repair.repaired)
        words = f"ranked by {plan.importance}, and {mended} layers refitted on {CALIBRATION} images"
        self.exact_cut = _in_float64(self.pruned, self.images)
        self._add(self.cut, self.pruned, self.exact_cut, words)

    def compile(self) -> None:
        """The fused and the pruned form as machine code, where TVM is installed."""
        try:
            for title, subject, exact in (("fused", self.fused, self.exact), (self.cut, self.pruned, self.exact_cut)):
                seconds = time.perf_counter()
                executable = compile(subject, self.one, fuse=False)
                seconds = time.perf_counter() - seconds
                self.steps.append(_step(title, "TVM", _tvm_run(executable), subject, exact, self.images, batch=1))
                self._say(f"machine code for this CPU, made in {seconds:.0f} s without a search")
        except TvmMissingError as missing:
            self.left_out.append(str(missing))
            self.console.print(f"[yellow]not compiled[/]: {missing}", highlight=False)

    def _add(self, name: str, subject: nn.Module, exact: Logits | None, words: str) -> None:
        self.steps.append(_torch_step(name, subject, exact, self.images))
        self._say(words)

    def _say(self, words: str) -> None:
        self.console.print(f"[green]✓[/] [bold]{_title(self.steps[-1][0])}[/]: {words}", highlight=False, soft_wrap=True)


def _torch_step(name: str, subject: nn.Module, exact: Logits | None, images: Images) -> tuple[Step, Run]:
    def predict(batch: Images) -> Logits:
        with torch.inference_mode():
            logits: Logits = subject(torch.from_numpy(np.array(batch))).numpy()
        return logits

    return _step(name, "torch", predict, subject, exact, images, batch=256)


def _tvm_run(executable: Any) -> Run:
    return lambda batch: executable.run(np.asarray(batch))[0]


def _step(
    name: str, engine: str, predict: Run, subject: nn.Module, exact: Logits | None, images: Images, *, batch: int
) -> tuple[Step, Run]:
    """A step that is not timed yet."""
    digits = digits_split()
    logits = []

    def kept(part: Images) -> Logits:
        logits.append(predict(part))
        return logits[-1]

    share = accuracy(kept, images, digits.test_labels, batch_size=batch)
    error = None if exact is None else float(np.abs(np.concatenate(logits) - exact).max() / np.abs(exact).max())
    # batch norm's own statistics are no parameters: they are not counted in the paper either
    return Step(name, engine, share, sum(p.numel() for p in subject.parameters()), error), predict


def _in_float64(model: nn.Module, images: Images) -> Logits:
    with torch.inference_mode():
        logits: Logits = deep_copy(model).double()(torch.from_numpy(np.array(images)).double()).numpy()
    return logits


def _timed(steps: list[tuple[Step, Run]], image: Images) -> list[Step]:
    """The steps with the median milliseconds of `ROUNDS` rounds, each of which runs every step once."""
    times: list[list[float]] = [[] for _ in steps]
    for round_number in range(-5, ROUNDS):  # the first rounds warm up
        for (_, predict), seconds in zip(steps, times, strict=True):
            start = time.perf_counter()
            predict(image)
            if round_number >= 0:
                seconds.append(time.perf_counter() - start)
    return [
        replace(step, milliseconds=statistics.median(seconds) * 1e3) for (step, _), seconds in zip(steps, times, strict=True)
    ]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one thread, and models that are compiled meanwhile on one core."""
    threads, before = torch.get_num_threads(), os.environ.get("TVM_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["TVM_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if before is None:
            del os.environ["TVM_NUM_THREADS"]
        else:
            os.environ["TVM_NUM_THREADS"] = before


def _title(step: Step) -> str:
    return step.name if step.engine == "torch" else f"{step.name}, {step.engine}"


def _table(steps: list[Step]) -> Table:
    table = Table("step", title="\nOne image on one thread", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("accuracy", "parameters", "ms", "speed-up", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    first = steps[0].milliseconds or 0.0
    for step in steps:
        milliseconds = step.milliseconds or float("nan")
        table.add_row(
            _title(step),
            f"{step.accuracy:.2%}",
            f"{step.parameters:,}",
            f"{milliseconds:.3f}",
            f"{first / milliseconds:.1f}x",
            "" if step.error is None else f"{step.error:.0e}",
            style="dim" if step.error is None else "bold" if step is steps[-1] else None,
        )
    return table


def _closing(steps: list[Step], seconds: float, output: Path | None) -> Iterator[str]:
    yield "error: of the logits against float64; of the fused nets, against the training form in float64"
    best = min((step for step in steps if step.error is not None), key=lambda step: step.milliseconds or float("inf"))
    lost = (steps[0].accuracy - best.accuracy) * 100
    faster = (steps[0].milliseconds or 0.0) / (best.milliseconds or 1.0)
    price = f"for {lost:.2f} points of accuracy" if lost > 0 else "at no loss of accuracy"
    yield f"\n[bold]{_title(best)}[/]: {faster:.1f} times as fast as the training form in torch, {price}"
    if output is not None:
        yield f"written: {output}"
    yield f"{seconds:.0f} s in all"
