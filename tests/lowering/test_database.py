"""What a search measured is read back, decides where it is faster, and a torn line costs nothing else."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering import build as lowering_build
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Step
from reparam_compiler.lowering.conv.choice import candidates
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.measured import MeasuredAlgorithms
from reparam_compiler.lowering.runtime.variant import Variant
from reparam_compiler.lowering.search.database import (
    CONVS,
    SCHEDULES,
    ConvRecord,
    append_conv,
    check_readable,
    cut_torn_tail,
    prepare,
    read_convs,
    warn_of_foreign,
)
from reparam_compiler.lowering.target import describe

pytestmark = pytest.mark.tvm
UNIT = VectorUnit(32, 16, 2)
SHAPE = ConvShape(1, 14, 14, 32, 40, (3, 3), padding=(1, 1, 1, 1))
RULE, OTHER, *_ = candidates(SHAPE, UNIT)


def record(algorithm: Algorithm, *seconds: float) -> ConvRecord:
    return ConvRecord(SHAPE, (Step("relu"),), algorithm, "here", seconds)


def test_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = [record(RULE, 1.5e-3, 1.25e-3), record(OTHER)]
    for each in written:
        append_conv(tmp_path, each)
    assert read_convs(tmp_path) == written


@pytest.mark.parametrize("tail", [b"", b'{"shape": {"ba', b"\x00\x00"])
def test_torn_tail_is_cut_and_whole_lines_stay(tmp_path: Path, tail: bytes) -> None:
    append_conv(tmp_path, record(RULE, 1e-3))
    with (tmp_path / CONVS).open("ab") as file:
        file.write(tail)
    prepare(tmp_path)
    assert read_convs(tmp_path) == [record(RULE, 1e-3)]
    assert cut_torn_tail(tmp_path / CONVS) == 0


def test_faster_record_wins_and_noise_does_not() -> None:
    def first(*records: ConvRecord) -> Algorithm:
        return MeasuredAlgorithms(records, "here")(SHAPE, UNIT)[0]

    assert first(record(RULE, 1.0), record(OTHER, 0.5)) == OTHER
    assert first(record(RULE, 1.0), record(OTHER, 0.99)) == RULE
    assert first(record(RULE, 1.0), record(OTHER)) == RULE
    assert first(record(OTHER, 0.5)) == RULE
    assert MeasuredAlgorithms([record(RULE, 1.0), record(OTHER, 0.5)], "elsewhere")(SHAPE, UNIT)[0] == RULE


def test_records_leave_the_rule_to_fall_back_on_where_an_algorithm_is_too_inexact() -> None:
    found = MeasuredAlgorithms([record(RULE, 1.0), record(OTHER, 0.5)], "here")(SHAPE, UNIT)
    assert found == [OTHER, *candidates(SHAPE, UNIT)]


def test_records_of_what_does_not_compute_the_shape_are_left_out() -> None:
    both = replace(SHAPE, stride=(2, 2), dilation=(2, 2))
    rule = candidates(both, UNIT)
    records = [ConvRecord(both, (), each, "here", (seconds,)) for each, seconds in ((rule[0], 1.0), (OTHER, 0.1), (RULE, 0.1))]
    assert MeasuredAlgorithms(records, "here")(both, UNIT) == rule


def test_a_folder_without_measurements_and_lines_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="no tuning records"):
        lowering.compile(nn.ReLU().eval(), torch.zeros(1, 3, 8, 7), database=tmp_path)
    for line in ("{}", "[]", "3", "null", '{"shape": [], "epilogue": [], "algorithm": {"tile": {}, "outputs": []}}'):
        (tmp_path / CONVS).write_text(f"{line}\n")
        with pytest.raises(LoweringError, match="no record"):
            read_convs(check_readable(tmp_path))
    with pytest.raises(LoweringError, match="no record"):
        lowering.compile(nn.ReLU().eval(), torch.zeros(1, 3, 8, 7), database=tmp_path)
    with pytest.raises(LoweringError, match="kept in a folder"):
        lowering.tune(nn.ReLU().eval(), torch.zeros(1, 3, 8, 7), database=tmp_path / CONVS)


@pytest.mark.parametrize(
    ("target", "searched", "said"),
    [
        ("here", True, None),
        ("there", True, "0 of 2 records of convs are for there, so the rule decides; they are for elsewhere, here."),
        ("gpu", False, "0 of 3 records are for gpu: nothing is measured for its kind"),
    ],
)
def test_records_of_other_targets_alone_are_told(
    target: str, searched: bool, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for each in (record(RULE, 1.0), replace(record(OTHER, 0.5), target="elsewhere")):
        append_conv(tmp_path, each)
    (tmp_path / SCHEDULES).write_text("[]\n")
    with caplog.at_level(logging.WARNING, "reparam_compiler"):
        warn_of_foreign(tmp_path, target, searched=searched)
    assert (said in caplog.text) if said else not caplog.text


def test_compile_tells_records_that_decide_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path | None] = []

    def build(_: Any, target: Any, database: Path | None, *others: Any) -> lowering_build.Built:
        given.append(database)
        return lowering_build.Built(Variant(describe(target), (), ()), {})

    monkeypatch.setattr(lowering_build, "to_relax", lambda *_, **__: None)
    monkeypatch.setattr(lowering_build, "build", build)
    append_conv(tmp_path, record(RULE, 1.0))
    for target, said in (
        ("llvm -num-cores 3", "0 of 1 records of convs are for"),
        ("cuda", "nothing is measured for its kind"),
    ):
        with caplog.at_level(logging.WARNING, "reparam_compiler"):
            lowering_build.compile(None, target=target, database=tmp_path)
        assert said in caplog.messages[-1]
    assert given == [tmp_path, None]
