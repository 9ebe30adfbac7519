"""What the tests of the commands share."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reparam_compiler.models.io import save_model
from tests.support.reparam_runs import SHAPE, net


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx (training form, by the older exporter), net.pt2, images.npz, and a folder of batches."""
    path = tmp_path_factory.mktemp("models")
    x = torch.randn(SHAPE)
    torch.export.save(torch.export.export(net(), (x,)), path / "net.pt2")
    save_model(net(), path / "net.onnx", example_inputs=(x,))
    images = np.random.default_rng(0).standard_normal((64, *SHAPE[1:])).astype("float32")
    np.savez(path / "images.npz", x=images)
    np.save(path / "images.npy", images)
    (path / "batches").mkdir()
    for number, batch in enumerate(np.split(images, 32)):
        np.save(path / "batches" / f"{number:02}.npy", batch)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of one conv."""
    from tests.support.tvmc_runs import write_onnx

    return write_onnx(tmp_path_factory.mktemp("model") / "m.onnx", 1)


@pytest.fixture(scope="session")
def artifact(model: Path) -> Path:
    """The same, compiled for this machine by a command that had nothing to remark."""
    from reparam_compiler.lowering.cpu.machine import native
    from tests.support.tvmc_runs import tvmc

    path = model.parent / "module.tar"
    target = f"llvm -mcpu={native()['mcpu']} -num-cores 2"  # of another machine a line would say what is left unused
    done = tvmc("compile", model, "--target", target, "--output", path)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """What the model can be run on."""
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(1).standard_normal((1, 3, 8, 7)).astype("float32"))
    return tmp_path / "in.npz"
