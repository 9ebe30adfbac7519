"""The script that made the shipped weights still makes weights that load, and writes them whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from examples import train_digits
from reparam_compiler.zoo import digits_repvgg, digits_split


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers on many threads crawl where something else uses the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_an_epoch_learns_something_and_the_file_fits_the_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "digits.safetensors"
    monkeypatch.setattr("sys.argv", ["train_digits.py", "--epochs", "1", "-o", str(output)])
    train_digits.main()
    digits_repvgg(pretrained=False).load_state_dict(load_file(output))
    with safe_open(output, "pt") as file:
        assert file.metadata()["split"] == digits_split().fingerprint
        assert float(file.metadata()["test_accuracy"]) > 0.2  # chance is 0.1
    assert list(tmp_path.iterdir()) == [output]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "digits.safetensors"
    output.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(train_digits.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        train_digits.write(torch.nn.Linear(2, 2), output, {})
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


def test_distortion_moves_the_image_a_little_and_keeps_its_shape() -> None:
    torch.manual_seed(0)
    images = torch.from_numpy(digits_split().train_images[:64].copy())
    distorted = train_digits.distort(images)
    assert distorted.shape == images.shape
    assert 0.01 < (distorted - images).abs().mean().item() < 0.2
    assert distorted.min() >= 0
    assert distorted.max() <= 1


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    rates = [train_digits.rate(epoch, 80) for epoch in range(80)]
    assert rates[0] < rates[4] < 1.0
    assert max(rates) == rates[5] == 1.0
    assert rates[-1] < 0.01
