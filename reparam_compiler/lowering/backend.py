"""What a kind of target is to the rest of `lowering`: how a module is lowered for it, built, run and measured.

    resolve -> backend_for(target) -> lower -> compiled: a library -> Executable, which runs it on the backend's machines

Nothing else asks which kind a target is. A new kind is one file with a subclass of `Backend` and one line in
`backends.BACKENDS`. Running an artifact loads these files too, and needs tvm and numpy alone: what only compiling needs is
imported by the methods that compile.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

import tvm
from tvm.target import Target

if TYPE_CHECKING:
    from reparam_compiler.lowering.conv.algorithms import ConvShape
    from reparam_compiler.lowering.relax.conv_sites import ConvSite
    from reparam_compiler.lowering.runtime.machines import Machines
    from reparam_compiler.lowering.runtime.weights import Weight
    from reparam_compiler.lowering.search.winners import Measured


PointT = TypeVar("PointT")
"""How a kind of target computes a conv (`conv.algorithms.Point`)."""
PointKind: TypeAlias = tuple[Callable[..., Any], Callable[..., Any]]
"""A class of points, and that of the tile among its knobs."""


@dataclass(frozen=True, slots=True)
class Peak:
    """float32 operations per second that a machine's arithmetic units allow, on `threads` threads."""

    flops: float
    threads: int


@dataclass(frozen=True, slots=True)
class Peers:
    """The targets that what was measured on one of them serves.

    family: its name, with the width of the vectors ("sapphirerapids-512"). cores: of a run.

    >>> Peers("znver3-256", 8).serves(4), Peers("znver3-256", 8).serves(1)
    (True, False)
    """

    family: str
    cores: int

    def serves(self, cores: int) -> bool:
        """Whether what was measured on these cores says anything of so many: one is a thing of its own, and a point that has
        pieces for several may have too few for more."""
        return self.cores == cores == 1 or 2 <= cores <= self.cores


class Tuning(ABC, Generic[PointT]):
    """What a search knows of a kind of target: its phases, the points of a conv, the space of what has no recipe.

        prepared -> its conv sites: each at each of their points       prepared -> rest: what has no recipe, in the space

    A search loads none of TVM's tensor intrinsics: importing them takes a minute.

    rule_version: of what `rule` counts.
    """

    rule_version: ClassVar[int] = 0

    @abstractmethod
    def prepared(self, module: Any) -> Any:
        """Relax with high-level ops, up to where kernels are chosen: its conv sites are those that `lower` finds."""

    @abstractmethod
    def sites(self, module: Any) -> "list[ConvSite]":
        """The sites of what `prepared` gave that have points to choose from."""

    @abstractmethod
    def rule(self, shape: "ConvShape") -> list[PointT]:
        """What is taken where nothing is measured: the first of these that is exact enough on a layer's weights."""

    @property
    def peers(self) -> Peers | None:
        """Whom records are shared with; None where they are nobody else's."""
        return None

    def processor(self) -> str:
        """The name of this machine's processor, where it is one of the target's; else nothing."""
        return ""

    @abstractmethod
    def points(self, shape: "ConvShape") -> list[PointT]:
        """The points of a conv that are worth a measurement, the rule's own first."""

    @abstractmethod
    def estimate(self, shape: "ConvShape", point: PointT) -> float:
        """What the rule counts for a point, in any unit."""

    @abstractmethod
    def features(self, shape: "ConvShape", point: PointT) -> "tuple[float, ...]":
        """What a fitted model may tell the points of all convs apart by, beside their estimate."""

    @abstractmethod
    def lowered(self, module: Any, measured: "Measured") -> Any:
        """What `prepared` gave, in scheduled kernels only: `Backend.lower` without its first phases."""

    @abstractmethod
    def rest(self, module: Any) -> Any:
        """What `prepared` gave, with the rule's kernels for convs, the rest in TIR without a schedule."""

    @abstractmethod
    def scheduled(self, module: Any) -> Any:
        """What `rest` gave, with schedules by rule where there are none. Raises LoweringError where one can have none."""

    @abstractmethod
    def space(self) -> Any:
        """MetaSchedule's space for a function without a recipe."""


@dataclass(frozen=True, slots=True)
class Backend(ABC):
    """A kind of target, bound to one target of that kind.

    kind: TVM's name of it ("llvm").
    device_name: of its devices, as `tvm.device` calls them ("cpu").
    code: the listings of `CompileOptions.sources` that show its code, and what TVM calls their format.
    packings: the functions of numpy that pack weights for its kernels, by the names that artifacts keep.
    idle_passes: those of TVM that do nothing for its kernels and take time, by name.
    weights_from: the bytes from which a constant is a weight, an argument of `main` that variants share; None: none is one.
    linked: whether a C++ compiler links its libraries; else they are bytes of our own (`to_bytes`).

    Example: `backend_for(resolve("llvm")).device_name` is "cpu".
    """

    target: Target
    kind: ClassVar[str]
    device_name: ClassVar[str]
    code: ClassVar[Mapping[str, str]]
    packings: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    idle_passes: ClassVar[Sequence[str]] = ()
    weights_from: ClassVar[int | None] = None
    linked: ClassVar[bool] = True

    @staticmethod
    def completed(config: dict[str, Any]) -> dict[str, Any]:
        """The target's attributes, with those that this machine decides where the caller leaves them open."""
        return config

    def checked(self) -> Target:
        """The target. Raises LoweringError where it has an attribute that TVM takes and no compiler knows."""
        return self.target

    def settled(self, *, measure: bool) -> "Backend":
        """The same, with what its kernels are chosen by. measure: where that is not known of this machine, measure it once."""
        return self

    @property
    def chosen_by(self) -> str:
        """What kernels are chosen by, for reports and artifacts; nothing where that is the same for every target of a kind."""
        return ""

    @abstractmethod
    def lower(self, module: Any, *, measured: "Measured | None", max_error: float) -> Any:
        """Relax with high-level ops -> Relax that calls scheduled kernels only.

        Args:
            measured: what measurements decide where they are faster than the rule; never where `tuning` gives None.
            max_error: the relative error that the algorithm of a layer may have on the layer's weights.

        Raises: LoweringError where a function can have no kernel.
        """

    def tir_pipeline(self) -> str:
        """The name of the pipeline by which TVM makes code of kernels."""
        return "default"

    @abstractmethod
    def compiled(self, module: Any) -> Any:
        """The library of what `lower` gave, its weights parameters of `main`: kernels as code, and what calls them."""

    @abstractmethod
    def listing(self, library: Any, name: str) -> str:
        """The code of a library that `compiled` made, as one of `code`; nothing where it holds none."""

    @abstractmethod
    def loaded(self, content: bytes) -> Any:
        """A library from the bytes of a file. Raises RuntimeError, OSError or ValueError where this machine cannot load it."""

    @abstractmethod
    def machines(self, library: Any, weights: "Sequence[Weight]", threads: int) -> "Machines":
        """What runs a library, loaded or just compiled, on this machine. threads: the cores of one run."""

    @abstractmethod
    def unrunnable_here(self) -> str:
        """Why this machine cannot run code for the target; nothing where it can."""

    def lacking_here(self, library: Any) -> str:
        """What this machine, which runs code for the target, lacks for one library; nothing where it runs it."""
        return ""

    def unloadable_here(self) -> str:
        """Why this machine may not even load a library for the target; nothing where it may."""
        return ""

    def forgone_here(self) -> str:
        """What of this machine code for the target leaves unused; nothing where it uses all, or cannot run here."""
        return ""

    def strength(self) -> tuple[int, ...]:
        """What a machine that runs code for several targets takes the best of: the largest."""
        return ()

    @staticmethod
    def points() -> "Sequence[PointKind]":
        """What a search's points of this kind are, as records hold them."""
        return ()

    def tuning(self) -> "Tuning[Any] | None":
        """What `tune` moves for this target; None where nothing is searched for its kind."""
        return None

    def peak(self) -> Peak | None:
        """What this machine's arithmetic units allow, measured; None where nothing measures it."""
        return None


@dataclass(frozen=True, slots=True)
class VirtualMachineBackend(Backend):
    """A kind of target whose models TVM compiles whole, and TVM's virtual machine runs."""

    @abstractmethod
    def vm_passes(self) -> Any:
        """The pass of `tvm.compile` that makes calls of the virtual machine of what `lower` gives."""

    def toolchain(self) -> contextlib.AbstractContextManager[Any]:
        """What `tvm.compile` needs round it to make machine code of kernels."""
        return contextlib.nullcontext()

    def device(self) -> Any:
        """This machine's device of this kind, whether it exists or not."""
        return tvm.device(self.device_name, 0)

    def compiled(self, module: Any) -> Any:
        """What `tvm.compile` makes of it."""
        passes, pipeline = self.vm_passes(), self.tir_pipeline()
        with self.toolchain():
            return tvm.compile(module, target=self.target, relax_pipeline=passes, tir_pipeline=pipeline)

    def listing(self, library: Any, name: str) -> str:
        """What TVM shows of the parts of this kind."""
        texts = [part.inspect_source(self.code[name]) for part in _parts(library.mod) if part.kind == self.kind]
        return "\n".join(texts)

    def loaded(self, content: bytes) -> Any:
        """A shared library, by the system's loader."""
        from reparam_compiler.lowering.runtime.virtual_machines import load_library

        return load_library(content)

    def machines(self, library: Any, weights: "Sequence[Weight]", threads: int) -> "Machines":
        """TVM's virtual machines."""
        from reparam_compiler.lowering.runtime.virtual_machines import VirtualMachines

        return VirtualMachines(library, self.device(), threads, [weight.value for weight in weights])


def _parts(module: Any) -> list[Any]:
    """A runtime module and what it imports, in order."""
    return [module, *(part for child in module.imports for part in _parts(child))]
