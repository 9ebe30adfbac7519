"""The shipped digits net is as good as it says, on images that it never saw."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from reparam_compiler.zoo import accuracy, calibration_images, digits_repvgg, digits_split
from reparam_compiler.zoo.digits import WEIGHTS, Images

LIMIT_MB = 2.5


def logits(images: Images) -> Images:
    with torch.no_grad():
        return digits_repvgg()(torch.from_numpy(images.copy())).numpy()


def test_accuracy_on_the_held_out_images_is_99_percent() -> None:
    split = digits_split()
    measured = accuracy(logits, split.test_images, split.test_labels)
    with safe_open(WEIGHTS, "pt") as file:
        assert measured == pytest.approx(float(file.metadata()["test_accuracy"]), abs=2 / 719)  # a tie may fall either way
    assert measured >= 0.99


def test_the_weights_were_trained_without_this_test_part() -> None:
    with safe_open(WEIGHTS, "pt") as file:
        assert file.metadata()["split"] == digits_split().fingerprint


def test_weights_are_small_enough_to_ship() -> None:
    assert WEIGHTS.stat().st_size < LIMIT_MB * 1e6


def test_fused_net_has_380_074_parameters() -> None:
    convs = [block.branches["dense"].conv for stage in digits_repvgg(pretrained=False).stages for block in stage]
    assert sum(conv.weight.numel() + conv.out_channels for conv in convs) + 128 * 10 + 10 == 380_074


def test_the_parts_have_the_stated_shapes_and_do_not_overlap() -> None:
    split = digits_split()
    assert split.train_images.shape == (1078, 1, 16, 16)
    assert split.test_images.shape == (719, 1, 16, 16)
    for images, labels in [(split.train_images, split.train_labels), (split.test_images, split.test_labels)]:
        assert images.dtype == np.float32
        assert labels.dtype == np.int64
        assert images.min() >= 0
        assert images.max() <= 1
        assert set(labels.tolist()) == set(range(10))
    everything = np.concatenate([split.train_images, split.test_images])
    assert len(np.unique(everything.reshape(len(everything), -1), axis=0)) == 1797  # no two images are alike


def test_the_split_can_not_be_changed_by_its_readers() -> None:
    with pytest.raises(ValueError, match="read-only"):
        digits_split().train_images[0] = 0


def test_calibration_images_are_training_images() -> None:
    images = calibration_images()
    assert images.shape == (256, 1, 16, 16)
    np.testing.assert_array_equal(images, digits_split().train_images[:256])


@pytest.mark.parametrize("n", [0, 1079])
def test_calibration_asks_for_what_there_is(n: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}: the training part has 1078 images"):
        calibration_images(n)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_accuracy_counts_every_image_once_whatever_the_batch(batch_size: int) -> None:
    labels = np.arange(10, dtype=np.int64)
    images = np.zeros((10, 1, 16, 16), np.float32)
    images[:, 0, 0, 0] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]  # the last one is read as 0, and so is wrong

    def predict(batch: Images) -> Images:
        return np.eye(10, dtype=np.float32)[batch[:, 0, 0, 0].astype(int)]

    assert accuracy(predict, images, labels, batch_size=batch_size) == 0.9


def test_accuracy_refuses_logits_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3\), expected \(2, 10\)"):
        accuracy(lambda batch: np.zeros((len(batch), 3)), np.zeros((2, 1, 16, 16), np.float32), np.zeros(2, np.int64))


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images and 0 labels"):
        accuracy(logits, np.zeros((0, 1, 16, 16), np.float32), np.zeros(0, np.int64))
