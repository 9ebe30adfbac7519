"""`reparam records`: what it prints of folders and files, for people and for programs, and how it ends."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler.api import compiling
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.cpu.families import MODEL
from reparam_compiler.lowering.search import verifying
from reparam_compiler.lowering.search.folders import summaries
from reparam_compiler.lowering.search.in_net import Timed
from reparam_compiler.lowering.search.records import CONVS, ConvRecord, append_conv, read_convs
from reparam_compiler.lowering.search.shared import Shared, read_shared, write_shared
from reparam_compiler.lowering.search.verifying import Verification, VerifiedLayer
from reparam_compiler.lowering.target import describe, resolve
from tests.support.reparam_runs import error_line, reparam

pytestmark = [pytest.mark.tvm, pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")]
SHAPE = ConvShape(1, 12, 10, 16, 24, (3, 3), padding=(1, 1, 1, 1))
ZEN3 = "llvm -mtriple=x86_64-linux-gnu -mcpu=znver3 -num-cores 1"
MODEL_NAME = "tests.commands.test_records_commands:conv"
SHAPES = "input:[1,16,12,10]"


def conv() -> nn.Module:
    """A conv of `SHAPE`."""
    return nn.Conv2d(16, 24, 3, padding=1).eval()


def rule_and_other(target: str | None) -> tuple[Any, Any]:
    tuning = backend_for(resolve(target)).settled(measure=True).tuning()
    assert tuning is not None
    rule, other, *_ = tuning.rule(SHAPE)
    return rule, other


def filled(folder: Path, target: str | None = ZEN3, ratio: float = 0.8) -> Path:
    """A folder in which the rule's second point beat its first, and one candidate failed."""
    folder.mkdir()
    rule, other = rule_and_other(target)
    first = ConvRecord(SHAPE, (), rule, describe(resolve(target)), (1.0,), where="net")
    append_conv(folder, replace(first, point=other, seconds=(), against=rule, where="alone", failure="it hung"))
    append_conv(folder, first)
    append_conv(folder, replace(first, point=other, seconds=(ratio,), against=rule, beside=(1.0,)))
    return folder


def lines(text: str) -> list[str]:
    """Of a table without its frame."""
    rows = (line.translate(str.maketrans("│┃", "  ")) for line in text.splitlines() if "━" not in line and "─" not in line)
    return [" ".join(row.split()) for row in rows]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_list_shows_what_is_taken_by_target_and_layer(tmp_path: Path) -> None:
    found = reparam("records", "list", filled(tmp_path / "ours"))
    assert found.exit_code == 0, found.output
    assert lines(found.stdout) == [
        f"{tmp_path / 'ours'}: 1 layers",
        '{"kind": "llvm", "mcpu": "znver3", "mtriple": "x86_64-linux-gnu", "num-cores": 1}',
        "layer points failed best by the rule's where taken",
        "1x12x10x16 float32 -> 24, kernel 3x3, padding 1x1x1x1 3 1 winograd 2x2 0.800 net yes",
    ]


def test_export_writes_what_list_and_programs_read(tmp_path: Path) -> None:
    file = tmp_path / "zen3.jsonl.gz"
    found = reparam("records", "export", filled(tmp_path / "ours"), "-o", file)
    assert found.exit_code == 0, found.output
    assert found.stdout == f"written: {file}: 1 layers for znver1-256\n"
    (only,) = read_shared(file).records
    assert (only.shape, only.against, only.point, only.ratio, only.cores) == (SHAPE, *rule_and_other(ZEN3), 0.8, 1)
    listed = json.loads(reparam("records", "list", file, "--json").stdout)["paths"]
    assert [(each["path"], each["origin"]["family"], each["origin"]["rule"]) for each in listed] == [
        (str(file), "znver1-256", MODEL)
    ]
    (layer,) = listed[0]["layers"]
    assert layer["best"]["kind"] == "Winograd"
    assert {name: layer[name] for name in ("target", "layer", "ratio", "where", "decides")} == {
        "target": "znver1-256 on 1 core",
        "layer": SHAPE.mark,
        "ratio": 0.8,
        "where": "net",
        "decides": None,
    }
    assert "znver1-256 on 1 core" in lines(reparam("records", "list", file).stdout)
    write_shared(file, Shared(read_shared(file).origin, (replace(only, cores=4),)))
    assert "znver1-256 on 4 cores" in lines(reparam("records", "list", file).stdout)


def test_merge_says_what_was_new_and_what_was_torn(tmp_path: Path) -> None:
    ours, theirs, both = filled(tmp_path / "ours"), filled(tmp_path / "theirs", ratio=0.7), tmp_path / "both"
    with (theirs / CONVS).open("a") as file:
        file.write('{"shape": {"ba')
    found = reparam("records", "merge", ours, theirs, "-o", both)
    assert found.exit_code == 0, found.output
    assert found.stdout == f"{ours}: 3 new, 0 that {both} has\n{theirs}: 1 new, 2 that {both} has\n"
    assert "line 4 is no record" in found.stderr
    assert len(read_convs(both)) == 4
    again = json.loads(reparam("records", "merge", ours, "-o", both, "--json").stdout)
    assert again == {"output": str(both), "folders": [{"folder": str(ours), "new": 0, "known": 3}]}


@pytest.mark.parametrize(
    ("ratios", "times", "code"), [((0.9, 0.99), (1e-3, 9e-4), 0), ((0.9, 1.01), (1e-3, 9e-4), 4), ((0.9, 0.9), (1e-3, 1e-3), 4)]
)
def test_verify_ends_by_what_still_wins(
    ratios: tuple[float, float], times: tuple[float, float], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = tuple(VerifiedLayer(f"conv_{number}", "direct", ratio) for number, ratio in enumerate(ratios))
    monkeypatch.setattr(compiling, "verify_records", lambda *_, **__: Verification(layers, *times))
    words = ("records", "verify", tmp_path, "--model", MODEL_NAME, "--input-shapes", SHAPES)
    found = reparam(*words)
    assert found.exit_code == code, found.output
    verdicts = ["still faster" if ratio < 1 else "not faster" for ratio in ratios]
    assert lines(found.stdout) == [
        "layer point by the rule's",
        *(f"conv_{number} direct {ratios[number]:.3f} {verdict}" for number, verdict in enumerate(verdicts)),
        f"a run: {1e3 * times[1]:.3f} ms with these records, 1.000 ms without",
    ]
    assert json.loads(reparam(*words, "--json").stdout)["faster"] == (code == 0)


@pytest.mark.usefixtures("one_process")
def test_verify_measures_the_winners_of_a_folder_again_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    folder = filled(tmp_path / "ours", None)
    before = (folder / CONVS).read_bytes()
    found = reparam("records", "verify", folder, "--model", MODEL_NAME, "--input-shapes", SHAPES, "--json")
    said = json.loads(found.stdout)
    assert found.exit_code == (0 if said["faster"] else 4), found.output
    (layer,) = said["layers"]
    assert (layer["layer"], layer["point"]) == ("conv_3x3_16_24_at_12x10", str(rule_and_other(None)[1]))
    assert layer["wins"] == (layer["ratio"] < 1)
    assert min(said["rule_seconds"], said["net_seconds"], layer["ratio"]) > 0
    assert (folder / CONVS).read_bytes() == before


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("times", "decides"), [((1e-3, 9e-4), True), ((1e-3, 1e-3), False)])
def test_verify_keeps_what_it_measured_where_it_is_told_to(
    times: tuple[float, float], decides: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (rule, other) = filled(tmp_path / "ours", None), rule_and_other(None)
    monkeypatch.setattr(verifying, "whole_runs", lambda *_: times)
    monkeypatch.setattr(verifying, "run_by_turns", as_measured)
    reparam("records", "verify", folder, "--model", MODEL_NAME, "--input-shapes", SHAPES, "--keep")
    last = read_convs(folder)[-1]
    assert (last.point, last.against, last.where) == (other, rule, "net")
    assert last.ratio == (0.7 if decides else math.inf)
    assert bool(last.failure) != decides
    assert [each.decides for each in summaries(folder)] == [decides]


def test_a_layer_whose_weights_no_point_of_the_rule_bears_is_named() -> None:
    search: Any = SimpleNamespace(tuning=SimpleNamespace(rule=lambda _: rule_and_other(None)))
    layer: Any = type("Layer", (), {"shape": SHAPE, "bears": lambda *_: False})()
    nothing: Any = None
    with pytest.raises(LoweringError, match=r"no algorithm of the rule is within 0.0001 on its weights; .*keep=False"):
        list(verifying._records(search, {layer: None}, nothing, nothing))


def as_measured(nets: Sequence[Timed], arrays: Sequence[Any]) -> None:
    """The rule's layers take a second, the others 0.7."""
    for net, seconds in zip(nets, (1.0, 0.7), strict=True):
        net.seconds[SHAPE.mark] = [seconds]


def test_records_that_decide_nothing_for_a_model_cannot_be_verified(tmp_path: Path) -> None:
    found = reparam("records", "verify", filled(tmp_path / "ours"), "--model", MODEL_NAME, "--input-shapes", SHAPES)
    assert found.exit_code == 4
    assert "its records decide nothing for this model" in error_line(found, "LoweringError")


@pytest.mark.parametrize(
    "command", [("list",), ("merge", "-o", "out"), ("export", "-o", "out"), ("verify", "--model", "x.onnx")]
)
def test_a_folder_without_records_is_one_line_and_its_exit_code(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    name, *words = command
    found = reparam("records", name, "empty", *words)
    assert found.exit_code == (3 if name == "verify" else 4)  # the model is opened first
    error_line(found, "UnsupportedModelError" if name == "verify" else "LoweringError")
    assert not (tmp_path / "out").exists()
