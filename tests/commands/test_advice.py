"""Advice is given in the words of its place: flags to who types a command, arguments to who calls a function."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import reparam_compiler
from reparam_compiler.advice import at_command_line, option
from reparam_compiler.commands import reparam as cli
from reparam_compiler.errors import ReparamError
from reparam_compiler.models.io import load_model, save_model

HERE = "tests.commands.test_advice"
ARGUMENT = re.compile(r"example_inputs|input_shapes|\b[a-z]+(_[a-z]+)*=|\bpass ")
"""What nobody types at a command line."""
FLAG = re.compile(r"(?<!\S)'?--[a-z]")


def branches() -> nn.Module:
    """A conv whose branches would be slower as one, between others."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.far = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=2, dilation=2)
            self.last = nn.Conv2d(64, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """`N 64 H W` to `N 4 H W`."""
            return self.last(torch.relu(self.near(x) + self.far(x)))

    return Dense().eval()


SAID: list[tuple[list[str], Callable[[Path], Any], str, str]] = [
    (
        ["inspect", f"{HERE}:branches", "--input-shapes", "x:[1,64,28,28]"],
        lambda _: reparam_compiler.inspect(branches(), torch.zeros(1, 64, 28, 28)).to_text(),
        "--policy always fuses it",
        "policy='always' fuses it",
    ),
    (
        ["fuse", f"{HERE}:branches", "-o", "{folder}/x.pt2"],
        lambda folder: save_model(branches(), folder / "x.pt2"),
        "needs its input shapes: --input-shapes 'x:[1,3,224,224]'",
        "needs its input shapes: save_model(..., example_inputs=...)",
    ),
    (
        ["inspect", "{folder}/net.pt"],
        lambda folder: load_model(folder / "net.pt"),
        "load it with --unsafe-load",
        "load it with load_model(..., unsafe=True)",
    ),
    (
        ["prune", f"{HERE}:branches", "--input-shapes", "x:[1,64,28,28]", "--ratio", ".5", "--quality", "high"],
        lambda _: reparam_compiler.prune(branches(), torch.zeros(1, 64, 28, 28), ratio=0.5, quality="high"),
        "--quality high says what is done with calibration data, and there is none; give --calibration",
        "quality='high' says what is done with calibration data, and there is none; give calibration=",
    ),
    (
        ["prune", f"{HERE}:branches", "--input-shapes", "x:[1,64,28,28]", "--ratio", ".5", "--importance", "taylor"],
        lambda _: reparam_compiler.prune(branches(), torch.zeros(1, 64, 28, 28), ratio=0.5, importance="taylor"),
        "give --calibration, 32 images",
        "give calibration=, 32 images",
    ),
]


@pytest.mark.parametrize(("words", "call", "flags", "arguments"), SAID, ids=[words[0] + words[-1][:6] for words, *_ in SAID])
def test_commands_are_told_flags_and_functions_arguments(
    words: list[str], call: Callable[[Path], Any], flags: str, arguments: str, tmp_path: Path
) -> None:
    (tmp_path / "net.pt").write_bytes(b"a pickle, for all one knows")
    found = CliRunner().invoke(cli.app, [*(word.format(folder=tmp_path) for word in words), "--json"])
    said = found.stdout
    assert flags in said
    assert not ARGUMENT.search(re.sub(r'"remarks".*', "", said)), said
    try:
        text = str(call(tmp_path))
    except ReparamError as error:
        text = str(error)
    assert arguments in text
    assert not FLAG.search(text)


def test_an_option_is_written_as_its_place_has_it() -> None:
    given: dict[str, object] = {"round_to": 4, "policy": "always", "verify": False, "weights_are_constant": True}
    assert [option(*item) for item in given.items()] == [f"{name}={value!r}" for name, value in given.items()]
    with at_command_line():
        typed = [option(*item) for item in given.items()]
    assert typed == ["--round-to 4", "--policy always", "--no-verify", "--weights-are-constant"]
    assert option("verify", False) == "verify=False"
