"""Work that is short says nothing; long work says how far it is, where somebody listens and in the log, and never on stdout."""

import io
import logging
from collections.abc import Callable

import pytest
from rich.console import Console
from typer.testing import CliRunner

from reparam_compiler import progress
from reparam_compiler.commands import printing
from reparam_compiler.commands.failing import errors_as_exit_codes
from reparam_compiler.commands.reparam import app
from reparam_compiler.progress import Progress, heard_by, steps

Clock = Callable[[float], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that goes on by so many seconds each time that it is read."""

    def ticking(seconds: float) -> None:
        now = iter(float(place) * seconds for place in range(10_000))
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))

    return ticking


def worked(count: int) -> list[Progress]:
    heard: list[Progress] = []
    with heard_by(heard.append):
        assert [*steps(range(count), "working", count)] == [*range(count)]
    assert [*steps(range(count), "working", count)] == [*range(count)]  # nobody listens any more
    return heard


def test_short_work_says_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock(0.1)
    assert worked(40) == []
    assert caplog.records == []


def test_long_work_is_spoken_of_every_five_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reparam_compiler.progress")
    clock(2.0)
    heard = worked(8)
    assert [(found.done, found.seconds, found.left) for found in heard] == [(2, 6.0, 18.0), (5, 12.0, 7.2)]
    assert caplog.messages[0] == str(heard[0]) == "working: 2 of 8, about 18 s left"


@pytest.mark.parametrize(("flags", "spoken"), [(["-v"], True), ([], False), (["-q"], False), (["--json"], False)])
def test_commands_speak_of_it_on_stderr_where_that_is_asked_for(
    flags: list[str], spoken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    result = CliRunner().invoke(app, ["inspect", "reparam_compiler.zoo:digits_repvgg", "--input-shapes", "[1,1,16,16]", *flags])
    assert result.exit_code == 0, result.output
    assert ("proving regions: 1 of" in result.stderr) == spoken
    assert "proving regions" not in result.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_a_spinner_turns_on_a_terminal_but_not_for_machines(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(printing, "Console", lambda **_: terminal)
    with errors_as_exit_codes(as_json), printing.status("fusing"):
        pass
    assert ("fusing" in terminal.file.getvalue()) != as_json  # type: ignore[attr-defined]
