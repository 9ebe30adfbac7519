"""The benchmark that kills searches counts what it should, and a search that is killed loses nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnxruntime")

from benchmarks import kills, kills_writers
from benchmarks.kills_subject import Subject
from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct, Tile
from reparam_compiler.lowering.search.records import CONVS, SCHEDULES, ConvRecord, append, append_conv, prepare

pytestmark = pytest.mark.tvm
KILL = kills.Kill(1.0, False, True, new=4, lost=0, torn=0, inside=0, went_on=None, right=True, left=1, alive=False)


def test_lines_are_counted_and_torn_ones_are_told_from_those_at_the_end(tmp_path: Path) -> None:
    subject = Subject(tmp_path, 4)
    prepare(subject.folder)
    append_conv(subject.folder, ConvRecord(ConvShape(1, 9, 9, 4, 4, (3, 3)), (), Direct(Tile(4, 16)), "here", (2.0,)))
    append(subject.folder, SCHEDULES, [0, []])
    assert subject.torn() == (0, 0)
    assert subject.counted() == subject.records().total() == 2
    for torn in ((1, 0), (2, 1)):
        with (subject.folder / CONVS).open("a") as file:
            file.write("{\n")
        assert subject.torn() == torn
    assert subject.records().total() == 2


@pytest.mark.parametrize("wrong", [{"lost": 1}, {"inside": 1}, {"went_on": False}, {"right": False}])
def test_a_kill_is_sound_where_nothing_is_lost_torn_or_wrong(wrong: dict[str, bool]) -> None:
    assert KILL.sound
    assert replace(KILL, went_on=True, torn=1).sound
    assert not replace(KILL, **wrong).sound


def test_the_page_has_a_row_for_each_kind_of_moment() -> None:
    page = kills.written(
        [KILL, KILL, replace(KILL, at_a_write=True, went_on=True)], [kills.Scene("a flood", False, ["help"])], 0
    )
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| a")]
    assert [row[:4] for row in rows] == [
        ["| anywhere", "2", "2", "8"],
        ["| at a write", "1", "1", "4"],
        ["| all", "3", "3", "12"],
    ]
    assert rows[2][7] == "1 of 1"
    assert "## a flood: NOT SOUND\n\n```\nhelp\n```" in page


ENDED = kills_writers.Ended("compile, library", 1.0, "SIGKILL", False, True, "old", torn=0, left=2, after=0, code=-9, lines=[])
SAID = replace(ENDED, by="SIGINT", left=0, code=130, lines=["reparam: KeyboardInterrupt: ended by Ctrl-C"])


@pytest.mark.parametrize(
    ("end", "sound"),
    [
        (ENDED, True),
        (replace(ENDED, model="new"), True),
        (replace(ENDED, model="torn"), False),
        (replace(ENDED, torn=1), False),
        (replace(ENDED, after=1), False),
        (SAID, True),
        (replace(SAID, lines=["a warning of TVM's", *SAID.lines]), True),
        (replace(SAID, code=1), False),
        (replace(SAID, lines=["Traceback"]), False),
        (replace(SAID, left=1), False),
    ],
)
def test_an_ended_writer_is_sound_where_a_whole_file_is_there_and_no_litter(end: kills_writers.Ended, sound: bool) -> None:
    assert end.sound == sound


def test_the_page_of_writers_has_a_row_for_each_and_what_ctrl_c_made_them_say() -> None:
    page = kills_writers.written([ENDED, replace(ENDED, writer="fuse, ONNX", model="new", at_a_write=True), SAID, SAID])
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in page.splitlines()}
    assert rows["| compile, library"] == ["1", "0", "1", "1", "0", "0", "2", "0 |"]
    assert rows["| all"] == ["2", "1", "2", "1", "1", "0", "4", "0 |"]
    assert "| 2 | 130 | reparam: KeyboardInterrupt: ended by Ctrl-C |" in page
    assert "2 interrupts, 0 of them not sound; files left: 0." in page


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_writers_killed_and_interrupted_leave_the_old_file_or_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "writers.md"
    words = ["--of", "writers", "--kills", "2", "--interrupts", "1", "-o", str(output)]
    assert kills.main(words) == 0, capsys.readouterr().out
    assert len(json.loads(output.with_suffix(".json").read_text())["ends"]) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seven searches and as many builds
def test_a_kill_and_every_scene_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "kills.md"
    assert kills.main(["--kills", "1", "--trials", "4", "-o", str(output)]) == 0, capsys.readouterr().out
    record = json.loads(output.with_suffix(".json").read_text())
    assert len(record["kills"]) == 1
    assert [scene["name"] for scene in record["scenes"] if not scene["sound"]] == []
    assert "| all | 1 |" in output.read_text()
