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
