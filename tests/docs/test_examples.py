"""Every example runs, small, and says what its docstring promises."""

import importlib
import io
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import reparam_compiler
from examples import serve
from reparam_compiler.models.io import save_model
from reparam_compiler.zoo import Architecture, RepVGG, randomise_batch_norm

pytestmark = [pytest.mark.tvm, pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")]
SHAPE = (3, 32, 32)


def small_net() -> torch.nn.Module:
    """A RepVGG of two blocks."""
    torch.manual_seed(0)
    return randomise_batch_norm(RepVGG(Architecture((2,), (8,), strides=(4,)), num_classes=10)).eval()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `serve` and `fleet` run: of any batch, by ones and by fours."""
    path = tmp_path_factory.mktemp("artifact") / "model.tar"
    reparam_compiler.compile(small_net(), (torch.zeros(1, *SHAPE),), batches=(1, 4)).save(path)
    return path


def said_by(name: str, *words: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the example prints when it is run with these words; it must end with 0."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
    assert not importlib.import_module(f"examples.{name}").main()
    return capsys.readouterr().out


def test_a_checkpoint_of_an_unknown_class(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by("unknown_checkpoint", capsys=capsys, monkeypatch=monkeypatch)
    assert len(re.findall("^  fused ", said, re.MULTILINE)) == 4  # the stem and three blocks
    assert "equal" in said


def test_somebodys_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(small_net(), tmp_path / "theirs.onnx", example_inputs=(torch.zeros(1, *SHAPE),))
    words = (tmp_path / "theirs.onnx", tmp_path / "fused.onnx")
    said = said_by("somebodys_onnx", *words, capsys=capsys, monkeypatch=monkeypatch)
    assert "2 fusions; 0 merges and norms stay" in said
    assert f"wrote {tmp_path / 'fused.onnx'}" in said


def test_pspnet_on_a_fast_backbone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--backbone", "RepVGG-A0 fast", "--pixels", "41")
    said = said_by("segmentation", *words, capsys=capsys, monkeypatch=monkeypatch)
    assert "50 convs -> 28" in said  # the backbone's 44 -> 22, four levels and two of the head
    assert "dilations of its convs: [1, 2, 4]" in said
    assert float(re.findall(r"differs by (\S+)", said)[0]) < 1e-12


def test_a_detector(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by("detector", "--pixels", "64", capsys=capsys, monkeypatch=monkeypatch)
    assert "Detector: (1, 24, 80) -> (1, 24, 80)" in said
    before, after = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) -> ([\d,]+) parameters", said)[0])
    assert after < 0.7 * before


def test_super_resolution(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by("super_resolution", "--height", "20", "--width", "27", capsys=capsys, monkeypatch=monkeypatch)
    assert "11 convs -> 5" in said
    assert "(1, 3, 20, 27) -> (1, 3, 40, 54)" in said
    assert float(re.findall(r"differs by ([\d.e+-]+)", said)[0]) < 1e-4


def test_torch_compile(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by("torch_compile", "--inner", "eager", capsys=capsys, monkeypatch=monkeypatch)
    assert all(float(error) < 1e-5 for error in re.findall(r"by (\S+)", said))
    assert said.count("by ") == 2


def npy(images: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, images)
    return written.getvalue()


def test_a_server_answers_requests_of_any_size_at_once(artifact: Path) -> None:
    executable = serve.served(str(artifact))
    batches = [np.random.default_rng(size).standard_normal((size, *SHAPE)).astype("float32") for size in (1, 2, 4, 7)]
    with ThreadPoolExecutor(4) as pool:
        answers = [np.load(io.BytesIO(answer)) for answer in pool.map(lambda x: serve.answer(executable, npy(x)), batches)]
    with torch.no_grad():
        for images, found in zip(batches, answers, strict=True):
            np.testing.assert_allclose(found, small_net()(torch.from_numpy(images)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"found float64 \(1, 3, 32, 32\); expected float32 \(N, 3, 32, 32\)"):
        serve.answer(executable, npy(batches[0].astype("float64")))


def test_a_server_over_http(artifact: Path) -> None:
    pytest.importorskip("fastapi", reason="needs fastapi and a client of HTTP: the extra test has both")
    from fastapi.testclient import TestClient

    with TestClient(serve.application(serve.served(str(artifact)))) as client:
        images = np.zeros((3, *SHAPE), "float32")
        answer = client.post("/predict", content=npy(images))
        assert answer.status_code == 200
        assert np.load(io.BytesIO(answer.content)).shape == (3, 10)
        assert client.post("/predict", content=npy(images[:, :1])).status_code == 422
        assert client.get("/health").json()["batches"] == [1, 4]


def test_a_fleet_gives_what_this_machine_gives(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    said = said_by("fleet", artifact, "--servers", "1", capsys=capsys, monkeypatch=monkeypatch)
    here = reparam_compiler.load(artifact).run(np.random.default_rng(0).standard_normal((1, *SHAPE)).astype("float32"))[0]
    (total,) = re.findall(r"add up to (-?[\d.]+)", said)
    assert float(total) == pytest.approx(float(here.sum()), abs=1e-3)


def test_a_net_for_aarch64(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = "aarch64-linux-gnu-g++"
    words = ("--pixels", "32", *(("-o", tmp_path / "net.tar") if shutil.which(compiler) else ()))
    said = said_by("aarch64", *words, capsys=capsys, monkeypatch=monkeypatch)
    assert "aarch64" in said
    assert "runs here: False" in said
    assert (tmp_path / "net.tar").exists() == (shutil.which(compiler) is not None)
