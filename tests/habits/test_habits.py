"""Every habit is taken, or refused truly, as the goldens have it: a covering sample of the ring, and the ring's own honesty.

`make habits` runs all cells. Here each habit meets one kind and two or three verbs, each kind every verb. A changed outcome
shows as a difference to `tests/goldens/habits`; one that is meant is kept by UPDATE_GOLDENS=1.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import reparam_compiler
from tests.habits import groups  # noqa: F401 - the habits register themselves
from tests.habits.kinds import KINDS, a_folder, given
from tests.habits.parts import HABITS
from tests.habits.ring import VERBS, Outcome, cells, outcome, sample
from tests.habits.table import PAGE, page, read, write

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

KEPT = read()
UPDATE = bool(os.environ.get("UPDATE_GOLDENS"))


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """What dynamo holds of a habit goes with it."""
    yield
    torch._dynamo.reset()


@pytest.mark.tvm
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # some habits are scripts
@pytest.mark.parametrize("name", HABITS)
def test_outcome_is_as_it_is_kept(name: str) -> None:
    kind, verbs = sample(name)
    found = {(name, kind, verb): came for verb, came in cells(HABITS[name], kind, verbs).items()}
    if UPDATE:
        write(read() | found)
    else:
        assert {key: came for key, came in KEPT.items() if key in found} == found


def test_page_says_what_is_kept() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(KEPT), "run `make habits`, or UPDATE_GOLDENS=1 pytest tests/habits"


def test_every_pair_of_a_kind_and_a_verb_is_sampled() -> None:
    met = {(kind, verb) for name in HABITS for kind, verbs in [sample(name)] for verb in verbs}
    assert met >= {(kind, verb) for kind in KINDS for verb in VERBS if verb not in ("compile", "torch.compile")}
    assert {verb for _, verb in met} == {*VERBS}


def came_of(verb: str, result: Any, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What the ring says where a verb of ours does this."""
    monkeypatch.setattr(reparam_compiler, verb, result)
    return outcome(given(HABITS["view_by_size"], "module with inputs", a_folder()), verb)


def fused_and(change: Any) -> Any:
    """`fuse`, and what is done to its result and its report."""
    right = reparam_compiler.fuse

    def fuse(*args: Any, **options: Any) -> Any:
        return change(*right(*args, **options))

    return fuse


def louder(model: nn.Module, report: Any) -> Any:
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    return model, report


def raising(error: Exception) -> Any:
    def verb(*args: Any, **options: Any) -> Any:
        raise error

    return verb


def test_ring_notices_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = came_of("fuse", fused_and(louder), monkeypatch)
    assert wrong.word == "failed"
    assert "output 0 is off by" in wrong.text


@pytest.mark.parametrize(
    ("error", "word", "text"),
    [
        (AssertionError("Guard failed"), "failed", "a bare AssertionError: Guard failed"),
        (reparam_compiler.VerificationError("y", 1.0, 0.5), "failed", "VerificationError: y: the rewritten model differs by 1"),
        (reparam_compiler.RewriteError("x. Please report the model"), "failed", "RewriteError: x. Please report the model"),
        (reparam_compiler.InfeasiblePruneError("no channel"), "refused", "InfeasiblePruneError: no channel"),
    ],
)
def test_only_what_the_library_raises_on_purpose_is_a_refusal(
    error: Exception, word: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = came_of("prune", raising(error), monkeypatch)
    assert came.word == word
    assert came.text.startswith(text)


def test_silence_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        fusions, refusals, remarks = (), (), ()

        def to_json(self) -> str:
            return "{}"

    silent = came_of("inspect", lambda *_: Nothing(), monkeypatch)
    assert silent == Outcome("failed", "nothing was fused, and nothing said of it")
