"""The options of TVM 0.19's tvmc that have no effect now, or cannot be had: each with the reason (`options`)."""

from dataclasses import dataclass

from reparam_compiler.tvmc.words import MICRO

EXECUTORS = {
    "graph": ("link-params",),
    "aot": ("link-params", "unpacked-api", "interface-api", "workspace-byte-alignment", "constant-byte-alignment"),
}
POOLS = (
    *("size-hint-bytes", "target-access", "clock-frequency-hz", "read-bandwidth-bytes-per-cycle"),
    *("write-bandwidth-bytes-per-cycle", "read-latency-cycles", "write-latency-cycles", "target-burst-bytes"),
)


@dataclass(frozen=True, slots=True)
class Without:
    """An option that is accepted and has no effect; `why` says what holds instead. `words`: whether it takes a value."""

    flags: tuple[str, ...]
    why: str
    words: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """An option that cannot be accepted without giving something else than was asked for."""

    flags: tuple[str, ...]
    why: str
    words: bool = True


LAYOUT = "the layout inside is chosen for the target (NHWC on a CPU); inputs and outputs keep the model's"
HARDWARE = "what the search must know of the machine is read from the target, such as --target-llvm-num-cores"
OF_MODELS = (
    Without(("--desired-layout", "--desired-layout-ops"), LAYOUT),
    Refused(("--mixed-precision",), "the arithmetic is that of the model; export the model in float16 instead", words=False),
    Without(
        ("--mixed-precision-ops", "--mixed-precision-calculation-type", "--mixed-precision-acc-type"),
        "it belongs to --mixed-precision, which is refused; the arithmetic is that of the model",
    ),
)
OF_COMPILE = (
    *OF_MODELS,
    Without(
        ("--executor", *(f"--executor-{name}-{option}" for name, options in EXECUTORS.items() for option in options)),
        "there is one executor now, the Relax virtual machine; parameters are linked into the library",
    ),
    Without(("--runtime-cpp-system-lib",), "the library is always a shared one"),
    Refused(("--runtime-crt-system-lib",), MICRO),
    Without(("--module-name",), "the entry of an artifact is always called main"),
    Without(("--dump-offloads",), "nothing is offloaded: every op is compiled by TVM itself"),
    Without(
        ("--workspace-pools", *(f"--workspace-pools-{name}" for name in POOLS)),
        "memory is planned by Relax, ahead of time, in one pool",
    ),
)
OF_RUN = (
    Refused(("--list-options",), MICRO, words=False),
    Refused(("--project-option",), MICRO),
)
OF_TUNE = (
    *OF_MODELS,
    Without(("--target-host",), "the host of an llvm target is the target itself"),
    Without(("--enable-autoscheduler", "--include-simple-tasks"), "there is one search now, of every kernel", words=False),
    Without(("--log-estimated-latency",), "the best time of each kernel is printed at the end", words=False),
    Without(("--tuner",), "there is one search now: the recipe's points for convs, MetaSchedule for what has no recipe"),
    Without(
        (
            *("--cache-line-bytes", "--vector-unit-bytes", "--max-shared-memory-per-block"),
            *("--max-local-memory-per-block", "--max-threads-per-block", "--max-vthread-extent", "--warp-size"),
        ),
        HARDWARE,
    ),
)
