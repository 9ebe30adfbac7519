"""How passes run while a model is compiled, and which texts of their work are kept.

    CompileOptions --context()--> PassContext, with a Watch --> listings {"relax": …, "tir": …, "after FuseOps": …}

Nothing is printed here: what a command line prints or writes to files is in `Executable.listings`.
"""

import difflib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import tvm
from tvm.ir.instrument import pass_instrument
from tvm.ir.transform import PassContext

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Backend
from reparam_compiler.lowering.backends import code_listings
from reparam_compiler.lowering.conv.accuracy import MAX_ERROR

log = logging.getLogger(__name__)

MODULES = ("relax", "tir")
"""What can be kept whatever the target: the imported model, and the scheduled kernels."""
TRUE_AND_FALSE = {"1": True, "true": True, "0": False, "false": False}
CONFIG = {"tirx.disable_assert": True}
"""Settings of TVM's passes unless the caller says otherwise. Kernels do not check their arguments: with those checks LLVM
compiles twice as much. What a model is given is checked where a run begins."""


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Settings of our passes and of TVM's; a text among lists of names is one name.

    max_error: the relative error, measured on a layer's own weights against float64, that an algorithm may have. The check
        of the whole model (`compile(verify=True)`) then allows `checking.tolerances.LAYERS` times as much.
    opt_level: passes of a higher level are left out, 0 to 3.
    pass_config: settings of single passes, by TVM's names of them; text is read as the type that TVM wants.
    disabled_passes: passes to leave out, by name. A model may then fail to compile.
    sources: which of `all_sources()` to keep as listings.
    before, after: passes whose input or output, as text, is kept as a listing.
    pass_times: keep a listing of the seconds that each pass took.
    measure: for a CPU of this machine that no costs are shipped for, measure them once, in some ten seconds, and keep them
        (`measure_cpu`). Without, those of another family decide, so that a target has the same kernels on every machine.
    shipped_records: for layers that no `database` decides, take what searches found on CPUs of the target's family and this
        package ships. Without, the rule decides.

    A pass that is named and that no compilation came to is named in a log line: TVM holds no list of its passes.

    >>> CompileOptions(max_error=0.0, sources="tir").sources
    ('tir',)

    Raises LoweringError where a list of names holds something else.
    """

    max_error: float = MAX_ERROR
    opt_level: int = 3
    pass_config: Mapping[str, Any] = field(default_factory=dict)
    disabled_passes: Sequence[str] = ()
    sources: Sequence[str] = ()
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    pass_times: bool = False
    measure: bool = True
    shipped_records: bool = True

    def __post_init__(self) -> None:
        for field_name in ("disabled_passes", "sources", "before", "after"):
            object.__setattr__(self, field_name, _names(field_name, getattr(self, field_name)))

    @property
    def advice(self) -> str:
        """What to do where TVM fails to compile with these options."""
        if self.disabled_passes or self.pass_config:
            named = in_words_of(python="disabled_passes, pass_config", command="--disabled-pass, --pass-config")
            return f"Compile it without disabled passes and pass settings ({named})"
        return (
            "It is a limit of TVM or a defect of this package: compile a smaller part of the model to find the op, or report "
            "the model"
        )

    def check(self) -> None:
        """Raises LoweringError where a setting is unknown or of the wrong type."""
        if self.opt_level not in range(4):
            raise LoweringError(f"opt_level: found {self.opt_level}; expected 0 to 3")
        bound: object = self.max_error
        if isinstance(bound, bool) or not isinstance(bound, Real) or not self.max_error >= 0:
            raise LoweringError(f"max_error: found {bound!r}; expected a relative error, 0 or more")
        if unknown := [name for name in self.sources if name not in all_sources()]:
            raise LoweringError(f"sources: found {', '.join(unknown)}; expected some of {', '.join(all_sources())}")
        self._config()

    def context(self, watch: "Watch", idle: Sequence[str] = ()) -> PassContext:
        """The PassContext that a compilation runs in. idle: passes that it leaves out in any case. Raises as `check`."""
        self.check()
        named = self.disabled_passes or self.before or self.after
        watched = [watch.instrument] if named or self.pass_times else []  # a call of Python for each pass
        return PassContext(opt_level=self.opt_level, disabled_pass=list(idle), instruments=watched, config=self._config())

    def _config(self) -> dict[str, Any]:
        return {**CONFIG, **{name: _value(name, value) for name, value in self.pass_config.items()}}


class Watch:
    """What one compilation's passes did: their names, seconds and the texts that the options ask for."""

    def __init__(self, options: CompileOptions) -> None:
        self.options = options
        self.seconds: list[tuple[str, float]] = []
        self.listings: dict[str, str] = {}
        self.left_out: set[str] = set()
        self.instrument = _Instrument(self)
        self._started: list[float] = []

    def wants(self, name: str) -> bool:
        """Whether a pass that TVM comes to shall run."""
        if name in self.options.disabled_passes:
            self.left_out.add(name)
            return False
        return True

    def started(self, name: str, module: Any) -> None:
        """A pass begins."""
        self._keep("before", self.options.before, name, module)
        self._started.append(time.perf_counter())

    def ended(self, name: str, module: Any) -> None:
        """A pass is done."""
        self.seconds.append((name, time.perf_counter() - self._started.pop()))
        self._keep("after", self.options.after, name, module)

    def finished(self) -> dict[str, str]:
        """The listings; a log line for each pass that was named and that the compilation never came to."""
        met = {name for name, _ in self.seconds} | self.left_out
        for name in dict.fromkeys((*self.options.before, *self.options.after, *self.options.disabled_passes)):
            if name not in met:
                near = difflib.get_close_matches(name, met, n=3)
                log.warning("pass %s did not run%s", name, f"; near it are {', '.join(near)}" if near else "")
        if self.options.pass_times:
            lines = [f"{seconds * 1e3:9.2f} ms  {name}" for name, seconds in self.seconds]
            self.listings["pass times"] = "\n".join(lines)
        return self.listings

    def _keep(self, when: str, wanted: Sequence[str], name: str, module: Any) -> None:
        if name in wanted:
            key = f"{when} {name}"
            text = module.script()
            self.listings[key] = f"{self.listings[key]}\n\n{text}" if key in self.listings else text


def all_sources() -> tuple[str, ...]:
    """What can be kept: the modules before and after lowering, and the code that TVM makes of them for each kind of target."""
    return (*MODULES, *code_listings())


def sources_of(names: Sequence[str], imported: Any, lowered: Any, library: Any, backend: Backend) -> dict[str, str]:
    """The listings that are asked for.

    Args:
        imported, lowered: the Relax modules before and after our passes.
        library: what `backend.compiled` made.
    """
    found: dict[str, str] = {}
    for name in names:
        if name == "relax":
            found[name] = imported.script()
        elif name == "tir":
            kernels = {var: f for var, f in lowered.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
            found[name] = tvm.IRModule(kernels).script()
        else:
            found[name] = backend.listing(library, name) if name in backend.code else ""
            if not found[name]:
                raise LoweringError(f"sources: {name!r} asks for {code_listings()[name]} code, and this target has none")
    return found


def _names(option: str, given: Any) -> tuple[str, ...]:
    """Names as a tuple; a text alone is one."""
    if isinstance(given, str):
        return (given,)
    names = tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(name, str) for name in names):
        raise LoweringError(f"{option}: found {given!r}; expected names of passes or listings")
    return names


def _value(name: str, value: Any) -> Any:
    """The value of a pass's setting as TVM wants it; text is read."""
    known = PassContext.list_configs()
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
        raise LoweringError(f"pass_config: TVM {tvm.__version__} does not know {name!r}; near it are {', '.join(near)}")
    if not isinstance(value, str):
        return value
    kind = str(known[name]["type"]).lower()
    if "bool" in kind and value.lower() in TRUE_AND_FALSE:
        return TRUE_AND_FALSE[value.lower()]
    if ("int" in kind or "bool" in kind) and value.lstrip("-").isdigit():
        return int(value)
    if "str" in kind:
        return value
    raise LoweringError(f"pass_config: found {name}={value!r}; TVM expects a value of type {known[name]['type']}")


@pass_instrument
class _Instrument:
    """Tells a Watch of each pass."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def should_run(self, module: Any, info: Any) -> bool:
        return self.watch.wants(str(info.name))

    def run_before_pass(self, module: Any, info: Any) -> None:
        self.watch.started(str(info.name), module)

    def run_after_pass(self, module: Any, info: Any) -> None:
        self.watch.ended(str(info.name), module)
