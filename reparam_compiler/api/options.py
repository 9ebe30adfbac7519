"""What the public functions can be told, each keyword written once.

    fuse(model, inputs, policy="always")     **options: Unpack[FuseKeywords]   ->   FuseOptions(policy="always")

A TypedDict says to a type checker which keywords there are; a frozen dataclass of the same fields has their defaults. What
means the same everywhere stands in the functions themselves:

    verify          check what is rewritten, and what was written. False leaves out what is a check and no step: a region whose
                    operator was found by trying it out, or acts on positions, is proven all the same, and so is a cut
    inplace         change the caller's model instead of a copy; with verify it is checked before it is changed
    return_report   give `(result, report)`
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ParamSpec, TypedDict, TypeVar, get_args

from torch import nn

from reparam_compiler.advice import in_words_of, option
from reparam_compiler.cost.model import USUAL, CostModel
from reparam_compiler.errors import InfeasiblePruneError, RewriteError
from reparam_compiler.models.calibration import Calibration
from reparam_compiler.passes.choices import AllocationName, Policy, Quality
from reparam_compiler.passes.fusion.fuse_branches import Options
from reparam_compiler.passes.pruning.allocation import RatioOf, check_least, check_ratio
from reparam_compiler.passes.pruning.budget import Budget
from reparam_compiler.passes.pruning.criteria.importance import Criterion, Loss
from reparam_compiler.passes.pruning.pipeline import check_method

P = ParamSpec("P")
R = TypeVar("R")
Made = TypeVar("Made")
Ignored = str | nn.Module | type[nn.Module]
"""A layer that keeps its width: by a name or a pattern, as a module of the model, or as the class of several."""
QUALITY: Quality = "standard"
"""Where none is given."""


class FuseKeywords(TypedDict, total=False):
    """How to fuse: keywords of `fuse`, `inspect`, `compile` and `tune`; see `fuse`."""

    policy: Policy
    cost_model: CostModel | None
    keep_bn: bool
    weights_are_constant: bool


@dataclass(frozen=True, slots=True)
class FuseOptions:
    """What `FuseKeywords` make; raises RewriteError for a value that an option cannot have."""

    policy: Policy = "cost"
    cost_model: CostModel | None = None
    keep_bn: bool = False
    weights_are_constant: bool = False

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise RewriteError(f"policy: found {self.policy!r}; expected {' or '.join(map(repr, get_args(Policy)))}")
        if not isinstance(self.cost_model, CostModel | None):
            raise RewriteError(
                f"cost_model: found {self.cost_model!r}; expected a CostModel (measure_costs() gives this machine's), or None"
            )
        for name in ("keep_bn", "weights_are_constant"):
            if not isinstance(found := getattr(self, name), bool):
                raise RewriteError(f"{name}: found {found!r}; expected True or False")

    def of_passes(self, *, verify: bool) -> Options:
        """The same for the passes."""
        return Options(verify=verify, policy=self.policy, cost_model=self.cost_model or USUAL, keep_bn=self.keep_bn)


class RoundKeywords(TypedDict, total=False):
    """How to prune: keywords of `prune` and `IterativePruner`; see `prune`."""

    importance: str | Criterion | None
    allocation: AllocationName | RatioOf
    calibration: Calibration | None
    quality: Quality
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    round_to: int
    min_channels: int
    max_ratio: float
    ignore: Ignored | Iterable[Ignored]
    loss: Loss | None


class PruneKeywords(RoundKeywords, total=False):
    """How much to prune, and how: keywords of `prune`."""

    ratio: float | None
    flops: float | None
    params: float | None
    latency: float | None
    measure: Callable[[Any], float] | None
    weights_are_constant: bool


@dataclass(frozen=True, slots=True, eq=False)
class PruneOptions:
    """What `PruneKeywords` make; raises InfeasiblePruneError for a value that an option cannot have or nothing would read."""

    ratio: float | None = None
    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    importance: str | Criterion | None = None
    allocation: AllocationName | RatioOf = "uniform"
    calibration: Calibration | None = None
    quality: Quality = QUALITY
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    round_to: int = 8
    min_channels: int = 1
    max_ratio: float = 1.0
    ignore: Ignored | Iterable[Ignored] = ()
    loss: Loss | None = None
    measure: Callable[[Any], float] | None = None
    weights_are_constant: bool = False

    def __post_init__(self) -> None:
        check_method(self.importance, self.allocation, self.quality, self.round_to)
        check_least(self.min_channels, self.max_ratio)
        if self.ratio is not None:
            check_ratio("ratio", self.ratio)
        if not isinstance(self.ignore, str | nn.Module | type | Iterable):
            raise InfeasiblePruneError(
                f"ignore: found {self.ignore!r}; expected a name, a pattern, a module, a class of modules, or several of these"
            )
        if not isinstance(self.weights_are_constant, bool):
            raise InfeasiblePruneError(f"weights_are_constant: found {self.weights_are_constant!r}; expected True or False")
        for name in ("loss", "measure"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise InfeasiblePruneError(f"{name}: found {given!r}; expected a function")
        if self.measure is not None and self.latency is None:
            raise InfeasiblePruneError("measure: it times a latency, and none is limited; give latency=, or leave it out")
        if self.calibration is None:
            self._check_without_data()

    def _check_without_data(self) -> None:
        """Raises InfeasiblePruneError for an option of calibration data, where there is none."""
        unread = [name for name in ("mean", "std") if getattr(self, name) is not None]
        unread += ["quality"] if self.quality != QUALITY else []
        if unread:
            raise InfeasiblePruneError(
                f"{option(unread[0], getattr(self, unread[0]))} says what is done with calibration data, and there is none; "
                f"give {in_words_of(python='calibration=', command='--calibration')}, or leave it out"
            )

    @property
    def budget(self) -> Budget | None:
        """What may remain, where that was said in place of a ratio."""
        shares = {"flops": self.flops, "params": self.params, "latency": self.latency}
        limits = {name: share for name, share in shares.items() if share is not None}
        return Budget(**limits) if limits else None

    def ignored(self, model: object) -> tuple[str, ...]:
        """The patterns of `ignore`: a text alone is one name; a module, or a class, stands for the names that it has there.

        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
        >>> PruneOptions(ignore="stem.0").ignored(net), PruneOptions(ignore=[net[0], "head*"]).ignored(net)
        (('stem.0',), ('0', 'head*'))
        >>> PruneOptions(ignore=nn.Conv2d).ignored(net)
        ('0',)

        Raises InfeasiblePruneError for a module that is none of the model's, or a class of which it has none.
        """
        alone = isinstance(self.ignore, str | nn.Module | type)
        found: list[str] = []
        for entry in (self.ignore,) if alone else self.ignore:  # type: ignore[union-attr]
            found += [entry] if isinstance(entry, str) else _names_of(entry, model)
        return tuple(found)


def _names_of(module: object, model: object) -> list[str]:
    held = list(model.named_modules(remove_duplicate=False)) if isinstance(model, nn.Module) else []
    if isinstance(module, type):
        found = f"the class {module.__name__}, of which"
        weighted = {name for name, other in held if any(True for _ in other.parameters())}
        names = [name for name, other in held if name in weighted - {""} and isinstance(other, module)]
    else:
        found = f"a {type(module).__name__} that"
        names = [name for name, other in held if name and other is module]
    if not names:
        raise InfeasiblePruneError(
            f"ignore: found {found} is none of the model's modules with weights; expected names, "
            "patterns, or modules or their classes that the model holds"
        )
    return names


def made(kind: type[Made], function: str, keywords: Any) -> Made:
    """The options that keywords make; raises TypeError for one that there is not, as Python does."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := [name for name in keywords if name not in known]:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown[0]!r}")
    return kind(**keywords)


def takes(kind: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Shows the fields of these options, and their defaults, in the signature of a function that takes them as keywords."""

    def shown(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=item.type)
            for item in fields(kind)
        ]
        places = {name: place for place, name in enumerate(("verify", "inplace", "return_report"), 1)}
        ordered = sorted([*own, *keywords], key=lambda item: places.get(item.name, 0))  # those of every function come last
        function.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        return function

    return shown
