"""What the library raises, and how it quotes what others raise.

    ReparamError
    ├── UnsupportedModelError        no frontend takes this model, or it holds something that cannot be read
    ├── RewriteError                 a pass or a write-back could not do its work
    │   └── InvalidGraphError        a graph broke an invariant between two passes
    ├── VerificationError            the rewritten or compiled model does not compute what the original does
    ├── InfeasiblePruneError         nothing can be pruned, or a target cannot be met
    └── LoweringError                TVM cannot import, compile or run the model
        └── TvmMissingError          apache-tvm is not installed

Every message names the node, what was found, what was expected and what to do (`advice`).
"""


class ReparamError(Exception):
    """The root: `except ReparamError` catches every error that the library raises on purpose.

    What to do: read the message to its end; it says what was found, what was expected, and what helps.
    """


class UnsupportedModelError(ReparamError):
    """The model cannot be read: its kind, an op's attributes, or the state it is in.

    What to do: give a model in evaluation mode, with `example_inputs` where shapes matter; export what is of another kind (a
    script, a pickle) to ONNX or with `torch.export`. A file that is damaged or of another format is named.
    """


class RewriteError(ReparamError):
    """A pass or a write-back could not do its work; the caller's model is as it was.

    What to do: report the model with the message, and meanwhile fuse or prune its parts one by one.
    """


class InvalidGraphError(RewriteError):
    """A graph breaks an invariant of the IR. This is a defect of a pass or of a frontend, not of the model.

    What to do: report the model; nothing on your side is wrong. A rule of your own, if one is registered, is the first suspect.
    """


class VerificationError(ReparamError):
    """The rewritten or compiled model differs from the original by more than rounding.

    What to do: report the model where a rewrite is named; where a compiled layer is, lower `max_error`. Where rounding the
    weights moves the outputs as much (a top-k of near ties, a net that is chaotic in float32), `verify=False` leaves the check
    out.

    node: where the difference was measured (a node id, the name of an output, or "output" for the whole model).
    max_abs_err, tolerance: in the units of that node's values; infinite and 0 where it is of another shape or kind.
    advice: what was found there, and what to do.
    subject: which model differs.
    """

    def __init__(
        self, node: str, max_abs_err: float, tolerance: float, advice: str = "", subject: str = "the rewritten model"
    ) -> None:
        self.node = node
        self.max_abs_err = max_abs_err
        self.tolerance = tolerance
        self.advice = advice or "Please report the model: this is a defect of a rewrite."
        self.subject = subject
        text = f"{node}: {subject} differs by {max_abs_err:.3g}; at most {tolerance:.3g} was expected"
        super().__init__(f"{text}. {self.advice}")

    def __reduce__(self) -> tuple[type["VerificationError"], tuple[str, float, float, str, str]]:
        return type(self), (self.node, self.max_abs_err, self.tolerance, self.advice, self.subject)


class TrainingModeWarning(UserWarning):
    """Norms of the model are in training mode, and stay as they are.

    What to do: call `model.eval()` before `fuse()`.
    """


class PruneWarning(UserWarning):
    """What pruning did may cost accuracy; the report says the same.

    What to do: measure the accuracy; remove less, or fine-tune.
    """


class UnrepairedPruneWarning(PruneWarning):
    """Channels were removed without calibration data to repair what is left: accuracy suffers, often to chance.

    What to do: pass `calibration=`, 32 to 256 samples like those that the model will see.
    """


class HarmfulRepairWarning(PruneWarning):
    """Repair made the outputs worse, on calibration samples that it was not fitted to, and was left out.

    What to do: give more samples, and real ones, preprocessed as the model's own are; remove less.
    """


class InfeasiblePruneError(ReparamError):
    """No channel can be removed, or the request contradicts the graph (a ratio outside [0, 1), an unknown family).

    What to do: the message names what pins the channels; fuse first, `ignore` less, or ask for less. `round_to=1` lets narrow
    layers lose some.
    """


class LoweringError(ReparamError):
    """TVM cannot import, compile, tune or run this model, or not on this machine; the message names the op.

    What to do: rewrite the op that is named, or cut the model before it; compile an artifact for the target of the machine that
    shall run it, with the version of tvm that is there.
    """


class TvmMissingError(LoweringError):
    """apache-tvm is not installed.

    What to do: `pip install 'reparam_compiler[tvm]'`.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not blank, for messages that pass it on; its class where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def class_and_line(error: BaseException) -> str:
    """ "ValueError: the first line", without what ends a sentence; the class alone where there is no text."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}".rstrip(".: ")
