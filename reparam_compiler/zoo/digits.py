"""A small trained RepVGG on scikit-learn's handwritten digits: the one model here whose accuracy means something.

    accuracy = |{ n : argmax_c predict(x_n)[c] = label_n }| / N

1,797 images of 8 x 8 pixels, brought to 16 x 16 by bilinear interpolation and to values from 0 to 1. 40 % of them are
held out for testing; the split is a fixed permutation, so no test image was ever trained or calibrated on. The weights
lie beside this file; `examples/train_digits.py` made them.

Source: scikit-learn, `load_digits` (the test part of the UCI set "Optical Recognition of Handwritten Digits").
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from reparam_compiler.zoo.repvgg import Architecture, RepVGG

ARCHITECTURE = Architecture(layers=(1, 3, 4, 2), widths=(32, 32, 64, 128), strides=(1, 2, 2, 2))
CLASSES = 10
SIZE = 16  # pixels on each side, after interpolation
TEST_SHARE = 0.4
SPLIT_SEED = 0
WEIGHTS = Path(__file__).with_name("digits_repvgg.safetensors")

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class DigitsSplit:
    """The digits, parted once and for all.

    train_images, test_images: `N 1 16 16`, float32, from 0 to 1.
    train_labels, test_labels: `N`, int64, from 0 to 9.
    fingerprint: a hash of the test part; the weights' file records which one they were trained without.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    fingerprint: str


def digits_repvgg(pretrained: bool = True) -> RepVGG:
    """The digits net in training form, in eval mode: 380,074 weights and biases after fusing.

    Args:
        pretrained: load the weights that are shipped; else they are random.

    Returns:
        A model from `N 1 16 16` (float32, from 0 to 1) to `N 10` logits.
    """
    model = RepVGG(ARCHITECTURE, num_classes=CLASSES, in_channels=1)
    if pretrained:
        from safetensors.torch import load_file  # here, for the rest of the zoo does without safetensors

        model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


@cache
def digits_split() -> DigitsSplit:
    """The digits with their fixed split into 1,078 training and 719 test images; the arrays are read-only.

    Returns:
        The same object at every call.
    """
    from sklearn.datasets import load_digits  # here: importing the zoo must not load it

    data = load_digits()
    small = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False).numpy()
    labels = data.target.astype(np.int64)
    # RandomState rather than default_rng: numpy promises that its stream never changes.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    held_out = round(len(labels) * TEST_SHARE)
    test, train = order[:held_out], order[held_out:]
    parts = images[train], labels[train], images[test], labels[test]
    for part in parts:
        part.flags.writeable = False
    return DigitsSplit(*parts, fingerprint=hashlib.sha256(test.astype("<i8").tobytes()).hexdigest())


def calibration_images(n: int = 256) -> Images:
    """Images to calibrate on, of the training part.

    Args:
        n: how many, from 1 to 1,078.

    Returns:
        `n 1 16 16`, float32, from 0 to 1.

    Raises:
        ValueError: there are not so many.
    """
    images = digits_split().train_images
    if not 1 <= n <= len(images):
        raise ValueError(f"n={n}: the training part has {len(images)} images; ask for 1 to {len(images)}")
    return images[:n]


def accuracy(predict: Callable[[Images], npt.ArrayLike], images: Images, labels: Labels, *, batch_size: int = 256) -> float:
    """The share of `images` whose largest logit is at their label.

    Args:
        predict: from `B 1 16 16` to logits `B 10`, anything that `numpy.asarray` takes.
        images: `N 1 16 16`.
        labels: `N`.
        batch_size: B; the last batch may be shorter. 1 suits a model that was compiled for one image.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: no images, not as many images as labels, or logits of another shape.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: give one label for each of at least one image")
    right = 0
    for start in range(0, len(images), batch_size):
        batch, truth = images[start : start + batch_size], labels[start : start + batch_size]
        logits = np.asarray(predict(batch))
        if logits.shape != (len(batch), CLASSES):
            raise ValueError(f"predict gave logits of shape {logits.shape}, expected {(len(batch), CLASSES)}")
        right += int((logits.argmax(axis=1) == truth).sum())
    return right / len(images)
