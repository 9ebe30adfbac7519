"""How accurate a net still is after one shot of `prune`, with no fine-tuning, beside Torch-Pruning in the same run.

    python -m benchmarks.prune_accuracy [--only NET …] [--tasks TASK …] [--ratios R …] [--jobs N] [--quick]
                                        [-o benchmarks/results/prune-accuracy.md]

Tasks   digits: scikit-learn's at 16 x 16. pairs: two of them side by side, 16 x 32, 100 classes. 40 % of the digits are held
        out, and test pairs are made of these alone. The seed gives the split, the initialisation and the order of training.
        Settings were chosen on the seeds 10 to 15 and earlier on 0 to 2: none of these is among those that are run.
Nets    RepVGG (that of `zoo/digits.py`), a ResNet of basic blocks, a net of dense blocks (concats); trained here, then fused.
        Weights are kept in the temporary folder under a hash of this source; results never are.
Ours    each quality, and L1 without repair. Ratios are exact (`round_to=1`); 256 training images calibrate.
Peer    best: the fused net by L1, L2, FPGM, Taylor and Hessian; each cell names the one that is best on the test set, a choice
        that no user has. (BNScale does not apply: a fused net has no norm.)
        pipeline: the unfused net by L1, its norms' statistics then taken anew on the same 256 images, then fused.

Taylor and Hessian get the labels of the calibration images, which ours never sees. Hessian gets the mean squared gradient of
single images from here: `accumulate_grad` of 1.6.1 overwrites its sum with the last one.

A run of some nets or tasks leaves what the page has of the others, under the head of the run that measured them.
"""

import argparse
import concurrent.futures
import copy
import hashlib
import inspect
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import reparam_compiler
from benchmarks import page
from examples.train_digits import distort
from reparam_compiler.zoo.blocks import ConvBN, Site, residual_pair
from reparam_compiler.zoo.digits import ARCHITECTURE, TEST_SHARE, digits_split
from reparam_compiler.zoo.repvgg import Architecture, RepVGG

BATCH = 64
LEARNING_RATE = 4e-3  # the peak of Adam's one cycle
TRAIN_PAIRS, TEST_PAIRS = 4000, 1500
CLASSES = {"digits": 10, "pairs": 100}
CRITERIA = ("L1", "L2", "FPGM", "Taylor", "Hessian")
UNPRUNED, L1, PIPELINE = "unpruned", "l1, no repair", "peer, pipeline"
QUALITIES = ("fast", "standard", "high")
GOALS = {0.5: 0.3, 0.7: 1.0}
"""Points that RepVGG on digits may lose on average at each ratio, with quality "high"."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is run.

    epochs: of training, by task. calibration: images. divisor: of all widths.
    """

    epochs: Mapping[str, int]
    seeds: tuple[int, ...] = (20, 21, 22)
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9)
    calibration: int = 256
    divisor: int = 1
    nets: tuple[str, ...] = ("RepVGG", "ResNet", "dense")


FULL = Settings({"digits": 15, "pairs": 6})
QUICK = Settings({"digits": 1}, seeds=(0,), ratios=(0.5,), calibration=32, divisor=4)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A task's images, `N 1 16 W` from 0 to 1, and their labels.

    digits, digit_labels: what training draws from. seen, seen_labels: to calibrate on. test, test_labels: never trained on.
    """

    task: str
    digits: Tensor
    digit_labels: Tensor
    seen: Tensor
    seen_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch of distorted training images, in an order drawn from torch's global generator; pairs are drawn anew."""
        if self.task == "digits":
            for chosen in torch.randperm(len(self.digits)).split(BATCH):
                yield distort(self.digits[chosen]), self.digit_labels[chosen]
            return
        for _ in range(TRAIN_PAIRS // BATCH):
            yield paired(self.digits, self.digit_labels, torch.randint(len(self.digits), (2, BATCH)), distort)


def data_of(task: str, seed: int, calibration: int) -> Data:
    """The task with the split of that seed."""
    split = digits_split()
    images = torch.from_numpy(np.concatenate([split.test_images, split.train_images]))
    labels = torch.from_numpy(np.concatenate([split.test_labels, split.train_labels]))
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels)))
    held_out = round(len(labels) * TEST_SHARE)
    test, train = (images[order[:held_out]], labels[order[:held_out]]), (images[order[held_out:]], labels[order[held_out:]])
    if task == "digits":
        return Data(task, *train, train[0][:calibration], train[1][:calibration], *test)
    random = torch.Generator().manual_seed(seed)
    seen = paired(*train, torch.randint(len(train[0]), (2, calibration), generator=random))
    return Data(task, *train, *seen, *paired(*test, torch.randint(len(test[0]), (2, TEST_PAIRS), generator=random)))


def paired(
    images: Tensor, labels: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor] = lambda images: images
) -> tuple[Tensor, Tensor]:
    """The images of both rows of `chosen` side by side, and the numbers of two digits that they show."""
    left, right = chosen
    return torch.cat([change(images[left]), change(images[right])], dim=3), 10 * labels[left] + labels[right]


class Dense(nn.Module):
    """x -> concat(x, relu(bn(x * W))): a layer of a dense block, in the order of conv and norm that can be fused."""

    def __init__(self, into: int, growth: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(ConvBN(Site(into, growth)), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layer(x)], dim=1)


def repvgg(classes: int, divisor: int) -> nn.Module:
    """The digits net."""
    widths = tuple(width // divisor for width in ARCHITECTURE.widths)
    narrow = Architecture(ARCHITECTURE.layers, widths, strides=ARCHITECTURE.strides)
    return RepVGG(narrow, num_classes=classes, in_channels=1)


def resnet(classes: int, divisor: int) -> nn.Module:
    """Three stages of two basic blocks."""
    widths = [width // divisor for width in (32, 64, 96)]
    layers: list[nn.Module] = [ConvBN(Site(1, widths[0])), nn.ReLU()]
    for into, width in zip([widths[0], *widths], widths, strict=False):
        layers += [residual_pair(Site(into, width, 2), Site(width, width)), residual_pair(*[Site(width, width)] * 2)]
    return nn.Sequential(*layers, *_head(widths[-1], classes))


def dense(classes: int, divisor: int) -> nn.Module:
    """Three dense blocks of three layers, a 3x3 conv of stride 2 before each."""
    growth, width = 24 // divisor, 32 // divisor
    layers: list[nn.Module] = [ConvBN(Site(1, width)), nn.ReLU()]
    for _ in range(3):
        layers += [ConvBN(Site(width, 32 // divisor, 2)), nn.ReLU()]
        layers += [Dense(32 // divisor + index * growth, growth) for index in range(3)]
        width = 32 // divisor + 3 * growth
    return nn.Sequential(*layers, *_head(width, classes))


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


NETS: Mapping[str, Callable[[int, int], nn.Module]] = {"RepVGG": repvgg, "ResNet": resnet, "dense": dense}


def trained(net: str, data: Data, seed: int, settings: Settings) -> nn.Module:
    """The net in training form, in eval mode; trained now, or as an earlier run of the same source trained it."""
    recipe = [inspect.getsource(part) for part in (NETS[net], Dense, data_of, paired, Data, _train, distort)]
    key = [net, data.task, seed, settings.epochs[data.task], settings.divisor, BATCH, LEARNING_RATE, TRAIN_PAIRS, *recipe]
    name = hashlib.sha256(json.dumps([*key, torch.__version__]).encode()).hexdigest()[:24]
    path = Path(tempfile.gettempdir()) / f"prune-accuracy-{os.getuid()}" / f"{name}.safetensors"
    torch.manual_seed(seed)
    model = NETS[net](CLASSES[data.task], settings.divisor)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    _train(model, data, settings.epochs[data.task])
    path.parent.mkdir(mode=0o700, exist_ok=True)
    page.write_whole(path, save(model.state_dict()))
    return model


def _train(model: nn.Module, data: Data, epochs: int) -> None:
    model.train()
    optimiser = torch.optim.Adam(model.parameters())
    steps = epochs * sum(1 for _ in data.batches())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for images, labels in data.batches():
            loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """The share of test images that are named right, in percent."""
    return 100 * float((model(data.test).argmax(dim=1) == data.test_labels).float().mean())


def ours(fused: nn.Module, data: Data, ratio: float, quality: str) -> nn.Module:
    """What `prune` makes of it; L1 without repair where `quality` is none."""
    options = {"calibration": data.seen, "quality": quality} if quality in QUALITIES else {"importance": "l1"}
    return reparam_compiler.prune(fused, (data.seen[:1],), ratio=ratio, round_to=1, **options)


def gradients(model: nn.Module, data: Data, criterion: str) -> dict[str, Tensor]:
    """What that criterion of the peer needs as each parameter's `grad`; nothing for one that looks at weights alone."""
    if criterion not in ("Taylor", "Hessian"):
        return {}
    model, found = copy.deepcopy(model), dict[str, Tensor]()
    pieces = [(data.seen, data.seen_labels)]
    if criterion == "Hessian":
        pieces = list(zip(data.seen.split(1), data.seen_labels.split(1), strict=True))
    for images, labels in pieces:
        model.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                piece = parameter.grad if criterion == "Taylor" else parameter.grad**2 / len(pieces)
                found[name] = found[name] + piece if name in found else piece.clone()
    return found


def theirs(model: nn.Module, data: Data, ratio: float, criterion: str, grads: Mapping[str, Tensor]) -> nn.Module:
    """The model that Torch-Pruning makes of a copy."""
    import torch_pruning

    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_()
        parameter.grad = grads[name].clone() if name in grads else None
    importances = torch_pruning.importance
    importance = {
        "L1": lambda: importances.MagnitudeImportance(p=1),
        "L2": lambda: importances.MagnitudeImportance(p=2),
        "FPGM": importances.FPGMImportance,
        "Taylor": importances.TaylorImportance,
        "Hessian": importances.HessianImportance,
    }[criterion]()
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)]
    pruner = torch_pruning.pruner.MetaPruner(
        model, (data.seen[:1],), importance=importance, pruning_ratio=ratio, ignored_layers=classifier
    )
    pruner.step()
    return model


def pipeline(model: nn.Module, data: Data, ratio: float) -> nn.Module:
    """The peer at its strongest: cut in training form, statistics taken anew, fused (by us: the peer does not fuse)."""
    cut = theirs(model, data, ratio, "L1", {}).train()
    for module in cut.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches
    with torch.no_grad():
        cut(data.seen)
    return reparam_compiler.fuse(cut.eval(), (data.seen[:1],))


def measured(net: str, data: Data, seed: int, settings: Settings) -> Iterator[tuple[str, float, float | str]]:
    """(method, ratio, accuracy or what went wrong), for all methods and ratios; 0 is the ratio of the net as it was."""
    model = trained(net, data, seed, settings)
    fused = reparam_compiler.fuse(model, (data.seen[:1],))
    yield UNPRUNED, 0.0, accuracy(fused, data)
    needed = {criterion: gradients(fused, data, criterion) for criterion in CRITERIA}
    for ratio in settings.ratios:
        methods = {name: partial(ours, fused, data, ratio, name) for name in (*QUALITIES, L1)}
        methods |= {name: partial(theirs, fused, data, ratio, name, needed[name]) for name in CRITERIA}
        for method, make in {**methods, PIPELINE: partial(pipeline, model, data, ratio)}.items():
            yield method, ratio, _tried(make, data)


def _tried(make: Callable[[], nn.Module], data: Data) -> float | str:
    try:
        return accuracy(make(), data)
    except Exception as error:  # noqa: BLE001 - a cell that fails, for whatever reason, is listed; the others go on
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A method on a net at a ratio: the accuracy of each seed in percent, or what went wrong there."""

    task: str
    net: str
    method: str
    ratio: float
    accuracies: tuple[float | str, ...]

    @property
    def numbers(self) -> tuple[float, ...]:
        """The accuracies where nothing went wrong; none where something did."""
        found = tuple(value for value in self.accuracies if not isinstance(value, str))
        return found if len(found) == len(self.accuracies) else ()

    @property
    def mean(self) -> float:
        """Over the seeds; below every accuracy where something went wrong."""
        return fmean(self.numbers) if self.numbers else -1.0

    def text(self, note: str = "") -> str:
        """The mean and the worst seed."""
        return f"{self.mean:.1f} ({min(self.numbers):.1f}){note}" if self.numbers else "failed"


def table(cells: Sequence[Cell]) -> str:
    """One net on one task as markdown: the methods down, the ratios across."""
    at = {(cell.method, cell.ratio): cell for cell in cells}
    ratios = sorted({cell.ratio for cell in cells} - {0.0})
    best = {ratio: max((at[criterion, ratio] for criterion in CRITERIA), key=lambda cell: cell.mean) for ratio in ratios}
    rows = [(name, [at[name, ratio].text() for ratio in ratios]) for name in (*QUALITIES, L1)]
    rows.append(("peer, best criterion", [best[ratio].text(f" {best[ratio].method}") for ratio in ratios]))
    rows.append((PIPELINE, [at[PIPELINE, ratio].text() for ratio in ratios]))
    whole = at[UNPRUNED, 0.0]
    lines = [f"## {whole.net}, {whole.task}: {whole.text()} before", ""]
    lines += [f"| | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |", "|" + "---|" * (len(ratios) + 1)]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(texts)} |" for name, texts in rows)]) + "\n"


def goals(cells: Sequence[Cell]) -> list[str]:
    """What the goals ask for, beside what was found."""
    at = {(cell.method, cell.ratio): cell.numbers for cell in cells if (cell.net, cell.task) == ("RepVGG", "digits")}
    lines = []
    for ratio, allowed in GOALS.items():
        found, whole = at.get(("high", ratio)), at.get((UNPRUNED, 0.0))
        if not found or not whole:
            lines.append(f"RepVGG, digits, high at {ratio}: not measured; goal {allowed}")
            continue
        lost = [before - after for before, after in zip(whole, found, strict=True)]
        verdict = "met" if fmean(lost) <= allowed else "not met"
        lines.append(
            f"RepVGG, digits, high at {ratio}: {fmean(lost):.2f} points lost, {max(lost):.2f} in the worst seed; "
            f"goal {allowed}: {verdict}"
        )
    return lines


def failures(cells: Sequence[Cell]) -> list[str]:
    """What went wrong, and where."""
    return [
        f"{cell.net}, {cell.task}, {cell.method} at {cell.ratio}: {value}"
        for cell in cells
        for value in dict.fromkeys(cell.accuracies)
        if isinstance(value, str)
    ]


def run(settings: Settings, jobs: int) -> Iterator[list[Cell]]:
    """The cells of each net on each task; so many processes share the work, of one thread each."""
    subjects = [(net, task) for task in settings.epochs for net in settings.nets]
    work = [(net, task, seed, settings) for net, task in subjects for seed in settings.seeds]
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        results = iter((pool.map if jobs > 1 else map)(_one_seed, work))
        for net, task in subjects:
            found: dict[tuple[str, float], list[float | str]] = {}
            for _ in settings.seeds:
                for method, ratio, value in next(results):
                    found.setdefault((method, ratio), []).append(value)
            yield [Cell(task, net, method, ratio, tuple(values)) for (method, ratio), values in found.items()]


def _one_seed(work: tuple[str, str, int, Settings]) -> list[tuple[str, float, float | str]]:
    net, task, seed, settings = work
    torch.set_num_threads(1)
    with warnings.catch_warnings(), threadpool_limits(1):  # BLAS's threads would wait for each other on busy cores
        warnings.simplefilter("ignore")  # L1 without repair warns of what it does; the peer of its own calls
        return list(measured(net, data_of(task, seed, settings.calibration), seed, settings))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each net and task and the goals, and writes page and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="narrow nets, hardly trained: to see that it works")
    parser.add_argument("--only", nargs="+", choices=list(NETS), help="names of nets")
    parser.add_argument("--tasks", nargs="+", choices=list(CLASSES), help="names of tasks")
    parser.add_argument("--ratios", nargs="+", type=float, help="shares of channels to remove")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each; the figures are the same")
    options = parser.parse_args(arguments)
    cells: list[Cell] = []
    settings = QUICK if options.quick else FULL
    epochs = {task: count for task, count in settings.epochs.items() if task in (options.tasks or settings.epochs)}
    nets, ratios = tuple(options.only or settings.nets), tuple(options.ratios or settings.ratios)
    for found in run(replace(settings, nets=nets, ratios=ratios, epochs=epochs), options.jobs):
        print(table(found), flush=True)
        cells += found
    closing = [*goals(cells), *failures(cells)]
    print("\n".join(closing))
    if options.output:
        given = sys.argv[1:] if arguments is None else arguments
        _write(options.output, cells, closing, settings.seeds, " ".join(["python -m benchmarks.prune_accuracy", *given]))


def _write(output: Path, cells: Sequence[Cell], closing: Sequence[str], seeds: Sequence[int], command: str) -> None:
    about = page.facts(
        command,
        cpu=f"{page.processor()}, one thread",
        versions=page.versions("torch", "torch-pruning", "numpy", "scikit-learn"),
        cells="test accuracy in percent, mean over the seeds (worst seed); one shot, no fine-tuning",
    )
    about["seeds"] = ", ".join(map(str, seeds))
    goal_lines = "\n".join(f"- {line}" for line in closing)
    text = page.head("What prune leaves of the accuracy", about) + f"{goal_lines}\n\n" + _tables(cells)
    record = {**about, "closing": list(closing), "results": [asdict(cell) for cell in cells]}
    earlier = _earlier(output.with_suffix(".json"), _subjects(cells))
    for run_before in earlier:
        others = [Cell(**{**cell, "accuracies": tuple(cell["accuracies"])}) for cell in run_before["results"]]
        head = {key: run_before[key] for key in about if key in run_before}
        text += "\n" + page.head("Of an earlier run", head) + _tables(others)
    page.write(output, text, {**record, "earlier": earlier})


def _subjects(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((cell.task, cell.net) for cell in cells))


def _tables(cells: Sequence[Cell]) -> str:
    return "\n".join(table([cell for cell in cells if (cell.task, cell.net) == subject]) for subject in _subjects(cells))


def _earlier(path: Path, measured_now: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """What earlier runs found of other nets and tasks, each run with what it says of itself; the latest first."""
    if not path.exists():
        return []
    last: dict[str, Any] = json.loads(path.read_text())
    found = []
    for record in [last, *last.pop("earlier", [])]:
        results = [row for row in record["results"] if (row["task"], row["net"]) not in measured_now]
        if results:
            found.append({key: value for key, value in record.items() if key != "closing"} | {"results": results})
    return found


if __name__ == "__main__":
    main()
