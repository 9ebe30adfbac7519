"""Shared records decide where they still hold, and come through a file as they were; folders of records become one."""

import gzip
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Iterator
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
from reparam_compiler.lowering.backend import Peers
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.conv.algorithms import ConvShape
from reparam_compiler.lowering.search import shared as shared_records
from reparam_compiler.lowering.search.folders import exported, merge, summaries
from reparam_compiler.lowering.search.records import (
    CONVS,
    SCHEDULES,
    WORKLOADS,
    ConvRecord,
    RestRecord,
    append_conv,
    append_rest,
    read_convs,
    read_rest,
)
from reparam_compiler.lowering.search.shared import (
    LARGEST,
    SUFFIX,
    Origin,
    Shared,
    SharedRecord,
    Shipped,
    of_family,
    read_shared,
    won_elsewhere,
    write_shared,
)
from reparam_compiler.lowering.search.winners import measured_in
from reparam_compiler.lowering.target import describe, resolve

pytestmark = pytest.mark.tvm
ONE = "llvm -mtriple=x86_64-linux-gnu -mcpu=znver3 -num-cores 1"
FOUR = "llvm -mtriple=x86_64-linux-gnu -mcpu=znver2 -num-cores 4"  # of the same family
FAMILY = "znver1-256"
SHAPE = ConvShape(1, 12, 10, 16, 24, (3, 3), padding=(1, 1, 1, 1))
OTHERS = tuple(replace(SHAPE, channels_out=size) for size in (8, 16, 32))
ORIGIN = Origin(FAMILY, "2026-11-30", "a cpu", "0.1.0", "abc1234", 1)


def tuning_of(target: str) -> Any:
    tuning = backend_for(resolve(target)).tuning()
    assert tuning is not None
    return tuning


ONES = tuning_of(ONE)
RULE, POINT, SECOND, *_ = ONES.rule(SHAPE)


def record(shape: ConvShape = SHAPE, *, cores: int = 1, **changed: Any) -> SharedRecord:
    """That the rule's second point beat its first, on one core."""
    return replace(SharedRecord(shape, POINT, RULE, 0.9, cores), **changed)


def in_net(point: Any, ratio: float, target: str = ONE, shape: ConvShape = SHAPE, against: Any = RULE) -> ConvRecord:
    found = ConvRecord(shape, (), point, describe(resolve(target)), (ratio,), where="net")
    return found if point == against else replace(found, against=against, beside=(1.0,))


def test_a_record_decides_where_the_rule_still_takes_what_it_beat() -> None:
    ours = Shipped(FAMILY, {SHAPE: record()})
    assert ours.points(SHAPE, RULE) == (POINT,)
    assert ours.points(OTHERS[0], RULE) == ()
    assert str(ours) == "shipped records znver1-256: 1 of 2 layers"


def test_a_record_of_another_rule_decides_nothing() -> None:
    old = Shipped(FAMILY, {SHAPE: record(against=SECOND)})
    assert old.points(SHAPE, RULE) == ()
    assert str(old) == "shipped records znver1-256: 0 of 1 layers"


def test_what_was_measured_for_the_target_itself_counts_more() -> None:
    assert Shipped(FAMILY, {SHAPE: record()}, [(SHAPE, POINT)]).points(SHAPE, RULE) == ()
    assert Shipped(FAMILY, {SHAPE: record()}, [(OTHERS[0], POINT), (SHAPE, SECOND)]).points(SHAPE, RULE) == (POINT,)


@given(st.integers(1, 64), st.integers(1, 64))
def test_one_core_is_a_thing_of_its_own_and_more_cores_serve_fewer(measured: int, asked: int) -> None:
    assert Peers(FAMILY, measured).serves(asked) == (measured == asked if 1 in (measured, asked) else asked <= measured)


def test_of_several_records_of_a_shape_that_of_the_fewest_cores_serves() -> None:
    found = Shared(ORIGIN, tuple(record(cores=cores) for cores in (1, 4, 16, 8)))
    served = {cores: found.for_cores(cores)[SHAPE].cores for cores in (1, 2, 4, 5, 16)}
    assert served == {1: 1, 2: 4, 4: 4, 5: 8, 16: 16}
    assert found.for_cores(17) == {}


def test_cpus_of_a_family_share_and_narrower_vectors_do_not() -> None:
    assert [tuning_of(target).peers for target in (ONE, FOUR)] == [Peers(FAMILY, 1), Peers(FAMILY, 4)]
    wide = "llvm -mtriple=x86_64-linux-gnu -num-cores 2 -mcpu=emeraldrapids"
    assert tuning_of(wide).peers == Peers("sapphirerapids-512", 2)
    assert tuning_of(f"{wide} -mattr=-avx512f").peers == Peers("sapphirerapids-256", 2)


shapes = st.sampled_from((SHAPE, *OTHERS))
points = st.sampled_from(ONES.points(SHAPE))
shareds = st.builds(SharedRecord, shapes, points, points, st.floats(0.1, 1.0), st.sampled_from((1, 4)))


@given(st.lists(shareds, max_size=8))
def test_a_file_gives_back_what_was_written_in_the_same_bytes(tmp_path_factory: Any, records: list[SharedRecord]) -> None:
    folder = tmp_path_factory.mktemp("shared")
    for name in ("one", "two"):
        write_shared(folder / name, Shared(ORIGIN, tuple(records)))
    assert read_shared(folder / "one") == Shared(ORIGIN, tuple(records))
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()


def broken(path: Path, change: Any) -> None:
    """The file of two records, with other lines."""
    write_shared(path, Shared(ORIGIN, (record(), record(OTHERS[0]))))
    path.write_bytes(gzip.compress(b"\n".join(change(gzip.decompress(path.read_bytes()).splitlines()))))


def test_a_line_that_is_no_record_costs_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken(tmp_path / "file", lambda lines: [lines[0], lines[1][:40], b"[]", lines[2]])
    assert read_shared(tmp_path / "file").records == (record(OTHERS[0]),)
    assert [f"line {number} is no record" in caplog.text for number in (2, 3, 4)] == [True, True, False]


def of_format(number: int) -> Any:
    return lambda lines: [json.dumps({**json.loads(lines[0]), "format": number}).encode(), *lines[1:]]


FOREIGN = (of_format(2), lambda lines: lines[1:], lambda lines: [], lambda lines: [b"{}"], lambda lines: [b"null"])


@pytest.mark.parametrize("change", FOREIGN)
def test_a_file_of_another_format_is_refused(change: Any, tmp_path: Path) -> None:
    broken(tmp_path / "file", change)
    with pytest.raises(LoweringError, match=r"found no shared records \(.+\); expected a file of `reparam records export`"):
        read_shared(tmp_path / "file")


@pytest.fixture
def shipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that the package ships for Zen 3; as written with `Shared(ORIGIN, ...)`."""
    monkeypatch.setattr(shared_records, "SHIPPED", tmp_path)
    of_family.cache_clear()
    yield tmp_path / f"{FAMILY}{SUFFIX}"
    of_family.cache_clear()


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"{}"), gzip.compress(b"{}" * 100)[:-9]],
    ids=["empty", "no gzip", "no origin", "torn"],
)
def test_a_shipped_file_that_cannot_be_read_is_said_and_the_rule_decides(
    content: bytes, shipping: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipping.write_bytes(content)
    assert measured_in(None, describe(resolve(ONE)), ONES.rule, ONES.peers) is None
    assert "found no shared records" in caplog.text
    assert "The rule decides" in caplog.text


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()).eval()


def compiled(target: str = ONE, **options: Any) -> tuple[str, str]:
    """What a conv of `SHAPE` is computed by, and what that was chosen by."""
    made = lowering.compile(
        conv(), torch.zeros(1, 16, 12, 10), target=target, options=lowering.CompileOptions(measure=False, **options)
    )
    (kernel,) = (kernel for kernel in made.kernels if kernel.flops)
    return kernel.algorithm, made.variants[0].chosen_by.rpartition("; ")[2]


def test_compile_takes_shipped_records_unless_it_is_told_not_to(shipping: Path) -> None:
    assert (str(RULE), str(POINT)) == ("direct", "winograd 2x2")
    assert compiled()[0] == str(RULE)
    write_shared(shipping, Shared(ORIGIN, (record(),)))
    of_family.cache_clear()
    assert compiled() == (str(POINT), f"shipped records {FAMILY}: 1 of 1 layers")
    algorithm, chosen_by = compiled(shipped_records=False)
    assert algorithm == str(RULE)
    assert "shipped records" not in chosen_by


def test_a_search_begins_with_what_won_on_any_number_of_cores(shipping: Path) -> None:
    write_shared(shipping, Shared(ORIGIN, (record(), record(OTHERS[0]), replace(record(), point=SECOND, cores=4))))
    assert won_elsewhere(Peers(FAMILY, 1)) == {SHAPE: POINT, OTHERS[0]: POINT}
    assert won_elsewhere(Peers(FAMILY, 2)) == {SHAPE: SECOND, OTHERS[0]: POINT}
    assert won_elsewhere(Peers("elsewhere", 1)) == {}


@pytest.mark.parametrize("target", [FOUR, "llvm -mtriple=x86_64-linux-gnu -mcpu=haswell -num-cores 1"])
def test_targets_that_a_record_does_not_serve_have_the_rule(target: str, shipping: Path) -> None:
    write_shared(shipping, Shared(ORIGIN, (record(),)))
    algorithm, chosen_by = compiled(target)
    assert algorithm == "direct"
    assert "shipped records" not in chosen_by


def test_a_folder_comes_before_what_is_shipped(shipping: Path, tmp_path: Path) -> None:
    write_shared(shipping, Shared(ORIGIN, (record(), record(OTHERS[0], against=ONES.rule(OTHERS[0])[0]))))
    folder = tmp_path / "folder"
    folder.mkdir()
    for each in (in_net(RULE, 1.0), in_net(SECOND, 0.8), in_net(POINT, 0.7, target=FOUR)):
        append_conv(folder, each)
    found = measured_in(folder, describe(resolve(ONE)), ONES.rule, ONES.peers)
    assert found is not None
    assert [found.points(shape, ONES.rule(shape)[0]) for shape in (SHAPE, *OTHERS[:2])] == [(SECOND,), (POINT,), ()]
    assert str(found.shipped) == f"shipped records {FAMILY}: 1 of 2 layers"


records_of_folders = st.builds(in_net, points, st.floats(0.5, 1.5), st.sampled_from((ONE, FOUR)), shapes)
targets = st.sampled_from(("here", "there"))
functions = st.builds(RestRecord, st.integers(), st.just("pool"), targets, st.just(1.0), st.floats(0, 2))
folders = st.lists(st.tuples(st.lists(records_of_folders, min_size=1, max_size=4), st.lists(functions, max_size=2)), max_size=3)


@given(folders)
def test_a_merged_folder_holds_every_record_of_each_once(
    tmp_path_factory: Any, contents: list[tuple[list[ConvRecord], list[RestRecord]]]
) -> None:
    work = tmp_path_factory.mktemp("merge")
    paths = [work / str(number) for number in range(len(contents))]
    for path, (convs, rest) in zip(paths, contents, strict=True):
        path.mkdir()
        for conv in convs:
            append_conv(path, conv)
        for each in rest:
            append_rest(path, each)
    first, again = merge(paths, work / "all"), merge(paths, work / "all")
    assert set(read_convs(work / "all")) == {conv for convs, _ in contents for conv in convs}
    assert set(read_rest(work / "all")) == {each for _, rest in contents for each in rest}
    assert sum(each.new for each in first) == len(read_convs(work / "all")) + len(read_rest(work / "all"))
    assert [each.new for each in again] == [0] * len(paths)


def schedules(folder: Path, workloads: list[str], records: list[tuple[int, str]], tail: str = "") -> None:
    append_conv(folder, in_net(RULE, 1.0))
    lines = {WORKLOADS: [[name, "module"] for name in workloads], SCHEDULES: [list(each) for each in records]}
    for name, content in lines.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in content) + tail)


def test_schedules_follow_their_workloads_into_the_merged_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    one.mkdir()
    two.mkdir()
    schedules(one, ["pool", "softmax"], [(0, "a"), (1, "b")])
    schedules(two, ["softmax", "norm"], [(0, "b"), (1, "c"), (0, "d")], tail='[1, "to')
    assert [(each.new, each.known) for each in merge([one, two], both)] == [(3, 0), (2, 2)]
    assert [json.loads(line)[0] for line in (both / WORKLOADS).read_text().splitlines()] == ["pool", "softmax", "norm"]
    assert [json.loads(line) for line in (both / SCHEDULES).read_text().splitlines()] == [
        [0, "a"],
        [1, "b"],
        [2, "c"],
        [1, "d"],
    ]
    assert caplog.text.count("its last line is torn") == 2
    (two / SCHEDULES).write_text('[0, "b\n[1]\n')
    with pytest.raises(LoweringError, match="a line is no JSON"):
        merge([two], both)


def test_what_is_no_folder_of_records_is_not_merged(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="no tuning records"):
        merge([tmp_path], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_what_won_in_a_net_is_exported_for_the_family(tmp_path: Path) -> None:
    fours = tuning_of(FOUR)
    four_rule, four_other, *_ = fours.rule(SHAPE)
    for each in (
        in_net(RULE, 1.0),
        in_net(POINT, 0.95),
        in_net(POINT, 0.9),  # measured again
        in_net(SECOND, 0.92),
        replace(in_net(POINT, 0.5, shape=OTHERS[0], against=ONES.rule(OTHERS[0])[0]), where="alone"),
        in_net(four_rule, 1.0, FOUR, against=four_rule),
        in_net(four_other, 0.8, FOUR, against=four_rule),
    ):
        append_conv(tmp_path, each)
    found = exported(tmp_path)
    assert found.origin.family == FAMILY
    assert found.records == (record(), SharedRecord(SHAPE, four_other, four_rule, 0.8, 4))
    assert [(each.measurements, each.best, each.ratio, each.where, each.decides) for each in summaries(tmp_path)[-2:]] == [
        (4, POINT, 0.9, "net", True),
        (1, POINT, 0.5, "alone", False),
    ]


def test_what_beat_another_rule_or_nothing_is_not_exported(tmp_path: Path) -> None:
    append_conv(tmp_path, in_net(SECOND, 1.0, against=SECOND))
    append_conv(tmp_path, in_net(POINT, 0.5, against=SECOND))
    with pytest.raises(LoweringError, match="found winners in a net for no family; expected those of one"):
        exported(tmp_path)


def test_of_several_families_one_is_named(tmp_path: Path) -> None:
    target = "llvm -mtriple=x86_64-linux-gnu -mcpu=znver4 -num-cores 1"
    rule, other, *_ = tuning_of(target).rule(SHAPE)
    ours = (in_net(RULE, 1.0), in_net(POINT, 0.9))
    for each in (*ours, in_net(rule, 1.0, target, against=rule), in_net(other, 0.7, target, against=rule)):
        append_conv(tmp_path, each)
    with pytest.raises(LoweringError, match="found winners in a net for znver1-256, znver4-512; expected those of one"):
        exported(tmp_path)
    assert [each.point for each in exported(tmp_path, "znver4-512").records] == [other]


def test_records_for_a_target_that_nobody_knows_are_listed_and_not_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append_conv(tmp_path, replace(in_net(POINT, 0.5), target="elsewhere"))
    (only,) = summaries(tmp_path)
    assert (only.target, only.ratio, only.decides) == ("elsewhere", 0.5, False)
    with caplog.at_level(logging.WARNING), pytest.raises(LoweringError, match="no family"):
        exported(tmp_path)
    assert "records for elsewhere are not shared" in caplog.text
    (tmp_path / CONVS).unlink()


SHIPPED_FILES = sorted(shared_records.SHIPPED.glob(f"*{SUFFIX}"))


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: path.name)
def test_a_shipped_file_says_where_it_is_from_and_is_small(path: Path) -> None:
    found = read_shared(path)
    assert f"{found.origin.family}{SUFFIX}" == path.name
    assert all((found.origin.date, found.origin.machine, found.origin.commit))
    assert all(record.ratio < 1 for record in found.records)
    assert len(found.records) == len(gzip.decompress(path.read_bytes()).splitlines()) - 1
    assert path.stat().st_size < 64 * 1024


def test_the_wheel_has_the_files(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    tree = tmp_path / "tree"
    home = "reparam_compiler/lowering/search/shipped"
    (tree / home).mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tree / name).write_bytes((root / name).read_bytes())
    for package in ("reparam_compiler", "reparam_compiler/lowering", "reparam_compiler/lowering/search"):
        (tree / package / "__init__.py").touch()
    (tree / home / f"{FAMILY}{SUFFIX}").write_bytes(b"")
    built(tree, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert f"{home}/{FAMILY}{SUFFIX}" in zipfile.ZipFile(wheel).namelist()


def built(tree: Path, folder: Path) -> None:
    call = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", call], cwd=tree, check=True, capture_output=True)


def test_a_file_that_unpacks_to_more_than_records_take_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(bytes(LARGEST + 1)))
    with pytest.raises(LoweringError, match=f"more than {LARGEST} bytes once they are unpacked"):
        read_shared(tmp_path / "bomb.jsonl.gz")
