"""The benchmark of a search runs on small settings, and what it concludes follows from the numbers."""

import json
from pathlib import Path

import onnx
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnxruntime")

from benchmarks import tuning
from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct, Tile
from reparam_compiler.lowering.search.progress import TuneStep
from reparam_compiler.lowering.search.records import ConvRecord
from tests.support.onnx_models import model_of, normal

pytestmark = pytest.mark.tvm


def test_the_share_of_the_gain_follows_the_best_so_far() -> None:
    steps = [TuneStep("conv", n, 9, 0, 1.0, best, float(n)) for n, best in enumerate([1.0, 1.0, 0.8, 0.8, 0.6, 0.6])]
    shares = {seconds: (ratio, share) for seconds, ratio, share in tuning.curve([TuneStep("first", 0, 9), *steps])}
    assert shares[0.0] == (1.0, 0.0)
    assert shares[5.0] == (0.6, 1.0)
    assert [share for _, share in shares.values()] == sorted(share for _, share in shares.values())
    assert tuning.curve([]) == []


def test_the_best_point_of_a_layer_is_that_of_the_least_ratio() -> None:
    shape, rule, other = ConvShape(1, 9, 9, 4, 4, (3, 3)), Direct(Tile(4, 16)), Direct(Tile(6, 16))
    first = ConvRecord(shape, (), rule, "here", (2.0,))
    faster = ConvRecord(shape, (), other, "here", (3.0,), rule, (4.0,))
    in_net = ConvRecord(shape, (), other, "here", (1.0,), rule, (4.0,), "net")
    assert tuning.best_of([first, faster, in_net]) == [(faster, 2)]


@pytest.mark.slow
def test_a_quick_run_searches_and_runs_the_net_by_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    onnx.save(model_of([conv], {"x": (1, 8, 9, 7)}, ["y"], {"w": normal(8, 8, 3, 3)}), tmp_path / "net.onnx")
    output = tmp_path / "page.md"
    tuning.main(["--net", str(tmp_path / "net.onnx"), "--seconds", "2", "--turns", "2", "-o", str(output)])
    record = json.loads(output.with_suffix(".json").read_text())
    assert set(record["milliseconds"]) == {tuning.RULE, tuning.TUNED, "ONNX Runtime"}
    assert record["measured"] >= 1
    assert "| 1x9x7x8 float32 -> 8, kernel 3x3" in output.read_text()
    assert "times as fast (geometric mean)" in capsys.readouterr().out
