"""The benchmark of large files makes the nets that it says, and measures commands on them."""

from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")

from benchmarks import large
from reparam_compiler import inspect


def test_the_nets_are_as_large_as_they_say() -> None:
    heavy, long = large.NETS
    assert heavy.bytes == pytest.approx(2.6e9, rel=0.01)
    assert long.nodes == 16_002


def test_a_net_is_valid_and_every_block_of_it_fuses(tmp_path: Path) -> None:
    net = large.Net("small", 3, 8)
    path = large.write(net, tmp_path)
    onnx.checker.check_model(str(path))
    report = inspect(path)
    assert (len(report.fusions), report.before.convs, report.after.convs) == (3, 6, 3)
    assert (tmp_path / "small.data").stat().st_size == net.bytes + 3 * 2 * 4 * 4 * 8


def test_the_table_says_what_a_command_held_and_how_it_ended() -> None:
    rows = large.table([large.Held("heavy", "fuse", 61.4, 6_500_000_000, 0), large.Held("long", "inspect", 2.0, 1, 1)])
    assert "| heavy | 372 | 2.60 | fuse | 61 | 6.50 | 2.50x |" in rows
    assert "| long | 16,002 | 0.01 | inspect | 2 | ended with 1 |  |" in rows
