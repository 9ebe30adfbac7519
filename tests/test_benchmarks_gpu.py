"""The GPU benchmark runs its whole path on a CPU, says so where there is no GPU, and never leaves out in silence."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_succeeds(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--output", tmp_path], capture_output=True, text=True, check=True)
    assert "No GPU here" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_smoke_run_writes_json_and_page_with_ratio_and_command(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main(["--cpu-smoke", "--output", str(tmp_path)]) == 0
    (found,), (page,) = tmp_path.glob("gpu-*-cpu.json"), tmp_path.glob("gpu-*-cpu.md")
    results, text = json.loads(found.read_text()), page.read_text()
    timed = {(m["net"], m["form"], m["batch"]) for m in results["measurements"]}
    assert timed == {(*net, n) for net in [("A0", "training"), ("A0", "fused"), ("ResNet-18", "folded")] for n in (1, 2)}
    assert all(m["rounds"] >= 5 and m["milliseconds"] > 0 for m in results["measurements"])
    assert results["errors"]["A0"] < 1e-3  # float32, 22 layers of random weights
    assert results["left_out"] == []
    assert "python benchmarks/gpu.py --cpu-smoke" in text
    assert "| A0 : ResNet-18 | 1.33 |" in text


def test_what_no_time_was_left_for_is_listed(gpu: ModuleType) -> None:
    settings = gpu.Settings(torch.device("cpu"), gpu.GROUPS[:1], ("fp32",), (2,), 32, 0.0)
    results = gpu.measure(settings)
    assert results.measurements == []
    assert results.left_out == ["A0, fp32, batch 2: no time left"]
    assert "- A0, fp32, batch 2: no time left" in gpu.markdown(results, settings, {})


def test_time_left_over_goes_to_the_others_up_to_a_limit(gpu: ModuleType) -> None:
    budget = gpu.Budget(time.perf_counter() + 8, configurations=8)
    assert budget.take(2) == pytest.approx(2, abs=0.1)  # a second each
    assert budget.take(4) == pytest.approx(8 * 4 / 6, abs=0.2)  # the first two took nothing
    assert budget.take(2) == 2 * gpu.LONGEST


def test_every_net_is_timed_and_the_papers_ratios_are_its_own_speeds(gpu: ModuleType) -> None:
    assert sorted(group.repvgg for group in gpu.GROUPS) == sorted(gpu.REPVGG)
    assert {group.resnet for group in gpu.GROUPS} == {None, *gpu.RESNET}
    speeds = {"A0": 3256, "A1": 2339, "A2": 1322, "B1g4": 868, "B1g2": 792}
    speeds |= {"ResNet-18": 2442, "ResNet-34": 1419, "ResNet-50": 719, "ResNet-101": 430, "ResNet-152": 297}
    for group in gpu.GROUPS[:5]:
        # The paper's own speeds give 1.33, 1.65, 1.84, 2.02 and 2.67: it cuts where we would round.
        assert speeds[group.repvgg] / speeds[group.resnet] == pytest.approx(group.paper_ratio, abs=0.011)


def test_tf32_is_off_in_fp32_and_the_callers_setting_comes_back(gpu: ModuleType) -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    with gpu.precision(gpu.MODES["fp32"]):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        with gpu.precision(gpu.MODES["tf32"]):
            assert torch.backends.cudnn.conv.fp32_precision == "tf32"
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_nobody_always_goes_first(gpu: ModuleType) -> None:
    keys = [("A0", "training"), ("A0", "fused"), ("ResNet-18", "folded")]
    assert [gpu.rotated(keys, turn)[0] for turn in range(4)] == [*keys, keys[0]]
