"""What a search measured is read back, decides where it is faster, and a torn line costs nothing else."""

import json
import logging
import math
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("tvm")


from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering import build as lowering_build
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Direct, Step, Tile, Winograd
from reparam_compiler.lowering.conv.choice import candidates, computes
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.pipeline import chosen
from reparam_compiler.lowering.cpu.tuning import points
from reparam_compiler.lowering.runtime.variant import Variant
from reparam_compiler.lowering.search.records import (
    CONVS,
    SCHEDULES,
    ConvRecord,
    RestRecord,
    Where,
    append_conv,
    append_rest,
    check_readable,
    cut_torn_tail,
    prepare,
    read_convs,
    read_rest,
    warn_of_foreign,
)
from reparam_compiler.lowering.search.winners import MARGIN, Measured, winners
from reparam_compiler.lowering.target import describe

pytestmark = pytest.mark.tvm
UNIT = VectorUnit(32, 16, 2)
SHAPE = ConvShape(1, 14, 14, 32, 40, (3, 3), padding=(1, 1, 1, 1))
RULE, OTHER, THIRD, *_ = candidates(SHAPE, UNIT)
ROOT = Path(__file__).parents[2]


def rule(shape: ConvShape) -> list[Algorithm]:
    return candidates(shape, UNIT)


def record(algorithm: Algorithm, *seconds: float) -> ConvRecord:
    """Of a point that was run beside the rule's, which took a second."""
    against = {} if algorithm == RULE else {"against": RULE, "beside": (1.0,) * len(seconds)}
    return ConvRecord(SHAPE, (Step("relu"),), algorithm, "here", seconds, **against)


def test_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = [record(RULE, 1.5e-3, 1.25e-3), record(OTHER)]
    for each in written:
        append_conv(tmp_path, each)
    assert read_convs(tmp_path) == written


def test_records_of_functions_are_read_back_too(tmp_path: Path) -> None:
    written = [RestRecord(-3, "pool", "here", 1e-3, 5e-4), RestRecord(7, "softmax", "here", 1e-3, math.inf)]
    for each in written:
        append_rest(tmp_path, each)
    assert read_rest(tmp_path) == written


@pytest.mark.parametrize("torn", [b"", b'{"shape": {"ba', b"\x00\x00", b"[3]", b"null", b'{"shape": []}'])
def test_what_another_search_left_torn_costs_that_line_alone(
    torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append_conv(tmp_path, record(RULE, 1e-3))
    with (tmp_path / CONVS).open("ab") as file:
        file.write(torn)
    append_conv(tmp_path, record(OTHER, 2e-3))
    assert read_convs(tmp_path) == [record(RULE, 1e-3), record(OTHER, 2e-3)]
    assert ("line 2 is no record" in caplog.text) == bool(torn)


def test_a_point_without_the_rules_time_beside_it_is_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append_conv(tmp_path, record(RULE, 1.0))
    append_conv(tmp_path, replace(record(OTHER, 0.5), beside=()))
    assert read_convs(tmp_path) == [record(RULE, 1.0)]
    assert "found 1 seconds beside 0 of the rule's" in caplog.text


@pytest.mark.parametrize("tail", [b"", b'[0, [[[], [["Get', b"\x00\x00"])
def test_a_torn_tail_of_metaschedules_files_is_cut_and_said(
    tail: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / SCHEDULES).write_bytes(b"[1]\n" + tail)
    prepare(tmp_path)
    assert (tmp_path / SCHEDULES).read_bytes() == b"[1]\n"
    assert (f"{len(tail)} bytes of it are cut off" in caplog.text) == bool(tail)
    assert cut_torn_tail(tmp_path / SCHEDULES) == 0


def test_many_processes_share_a_folder(tmp_path: Path) -> None:
    writer = (
        "import sys, pathlib; from tests.lowering.test_records import record, RULE\n"
        "from reparam_compiler.lowering.search.records import append_conv\n"
        "for count in range(1, 21): append_conv(pathlib.Path(sys.argv[1]), record(RULE, float(count)))"
    )
    command = [sys.executable, "-c", writer, str(tmp_path)]
    started = [subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    found = read_convs(tmp_path)
    assert sorted(each.seconds for each in found) == sorted(2 * [(float(count),) for count in range(1, 21)])


def test_a_line_that_finds_no_room_leaves_the_others_whole(tmp_path: Path) -> None:
    append_conv(tmp_path, record(RULE, 1e-3))
    before = (tmp_path / CONVS).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(LoweringError, match=r"the record cannot be kept: .*What it held before is whole"):
            append_conv(tmp_path, record(OTHER, 1e-3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / CONVS).read_bytes() == before


@pytest.mark.parametrize("where", ["alone", "net"])
def test_faster_record_wins_and_noise_does_not(where: Where) -> None:
    def first(*records: ConvRecord) -> Algorithm:
        placed = [replace(each, where=where) for each in records]
        return next(iter(winners(placed, "here", rule).get(SHAPE, ())), RULE)

    noise = 1 - MARGIN[where] / 2
    assert first(record(RULE, 1.0), record(OTHER, 0.5)) == OTHER
    assert first(record(RULE, 1.0), record(OTHER, noise)) == RULE
    assert first(record(RULE, 1.0), record(OTHER)) == RULE
    assert first(record(OTHER, 0.5)) == RULE
    assert winners([record(RULE, 1.0), record(OTHER, 0.5)], "elsewhere", rule) == {}


def test_what_is_faster_alone_and_not_in_the_net_loses() -> None:
    alone = [record(RULE, 1.0), record(OTHER, 0.5), record(THIRD, 0.7)]
    in_net = [replace(record(each, seconds), where="net") for each, seconds in ((RULE, 1.0), (OTHER, 1.1), (THIRD, 0.9))]
    assert winners(alone, "here", rule) == {SHAPE: (OTHER, THIRD)}
    assert winners([*alone, *in_net], "here", rule) == {SHAPE: (THIRD,)}
    assert winners([*alone, *in_net[:2]], "here", rule) == {}


def test_what_was_run_beside_another_rule_does_not_count() -> None:
    """The very first of the rule's algorithms may be too inexact for the weights, so that no net has it."""
    exact = [replace(record(OTHER, 1.0), against=None, beside=()), replace(record(THIRD, 0.5), against=OTHER)]
    assert winners(exact, "here", rule) == {SHAPE: (THIRD,)}
    assert winners([*exact, record(RULE, 1.0)], "here", rule) == {}
    assert winners([record(RULE), record(THIRD, 0.5)], "here", rule) == {}


def test_what_disturbs_a_run_decides_nothing() -> None:
    disturbed = replace(record(OTHER, 1.6, 0.8, 7.0), beside=(9.0, 8.0, 1.0))
    assert disturbed.ratio == pytest.approx(0.8)
    assert winners([record(RULE, 1.0), disturbed, record(THIRD, 0.9)], "here", rule) == {SHAPE: (OTHER, THIRD)}


@given(st.dictionaries(st.integers(1, 5), st.floats(1e-6, 2.0)))
def test_winners_come_in_order_and_each_beats_the_rule_by_more_than_the_noise(seconds: dict[int, float]) -> None:
    every = candidates(SHAPE, UNIT)
    times = {every[index]: value for index, value in seconds.items() if index < len(every)}
    found = winners([record(RULE, 1.0), *(record(*each) for each in times.items())], "here", rule).get(SHAPE, ())
    assert [times[each] for each in found] == sorted(value for value in times.values() if value < 1 - MARGIN["alone"])


def test_records_leave_the_rule_to_fall_back_on_where_an_algorithm_is_too_inexact() -> None:
    assert chosen(Measured({SHAPE: (OTHER,)}))(SHAPE, UNIT) == [OTHER, *candidates(SHAPE, UNIT)]


def test_records_of_what_does_not_compute_the_shape_are_left_out() -> None:
    both = replace(SHAPE, stride=(2, 2), dilation=(2, 2))
    foreign = [each for each in (RULE, OTHER) if isinstance(each, Winograd)]
    odd = Direct(Tile(4, 16), SHAPE.out_width * 3)
    assert foreign
    assert chosen(Measured({both: (*foreign, odd)}))(both, UNIT) == candidates(both, UNIT)
    assert not computes(SHAPE, odd)
    assert all(computes(SHAPE, each) for each in points(SHAPE, UNIT))


def test_a_folder_without_measurements_and_lines_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="no tuning records"):
        lowering.compile(nn.ReLU().eval(), torch.zeros(1, 3, 8, 7), database=tmp_path)
    for line in ("{}", "[]", "3", "null", '{"shape": [], "epilogue": [], "algorithm": {"tile": {}, "outputs": []}}'):
        (tmp_path / CONVS).write_text(f"{line}\n")
        with pytest.raises(LoweringError, match="no line that is a record"):
            check_readable(tmp_path)
    with pytest.raises(LoweringError, match="no line that is a record"):
        lowering.compile(nn.ReLU().eval(), torch.zeros(1, 3, 8, 7), database=tmp_path)
    with pytest.raises(LoweringError, match="kept in a folder"):
        lowering.tune(nn.ReLU().eval(), torch.zeros(1, 3, 8, 7), database=tmp_path / CONVS)


@pytest.mark.parametrize(
    ("target", "searched", "said"),
    [
        ("here", True, None),
        ("there", True, "0 of 2 records of convs are for there, so they decide nothing; they are for elsewhere, here."),
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
    asked: list[bool] = []

    def build(_: Any, target: Any, measured: Measured | None, *others: Any) -> lowering_build.Built:
        asked.append(measured is not None)
        return lowering_build.Built(Variant(describe(target), (), ()), {})

    monkeypatch.setattr(lowering_build, "to_relax", lambda *_, **__: None)
    monkeypatch.setattr(lowering_build, "build", build)
    append_conv(tmp_path, record(RULE, 1.0))
    for target in ("llvm -num-cores 3", "cuda", "opencl"):
        with caplog.at_level(logging.WARNING, "reparam_compiler"):
            lowering_build.compile(None, target=target, database=tmp_path)
        assert "0 of 1 records of convs are for" in caplog.messages[-1]
    assert asked == [True, True, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", {"batch": 0}), ("shape", {"stride": [0, 1]}), ("shape", {"kernel": 3}), ("shape", {"height": "14"}),
     ("point", {"tile": []}), ("point", {"kind": "Strassen"}), ("seconds", [0.0]), ("seconds", [math.nan])],
)  # fmt: skip
def test_a_line_that_says_what_no_search_does_is_no_record(
    field: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out where it is read: what sorts, counts and divides by its numbers takes them as they are."""
    append_conv(tmp_path, record(RULE, 1.0))
    line = json.loads((tmp_path / CONVS).read_bytes())
    line[field] = {**line[field], **value} if isinstance(value, dict) else value
    with (tmp_path / CONVS).open("a") as file:
        file.write(json.dumps(line) + "\n" + "[" * 10**5 + "\n")
    assert read_convs(tmp_path) == [record(RULE, 1.0)]
    assert caplog.text.count("is no record") == 2
