"""Model definitions in training form, to try the compiler on."""

from reparam_compiler.zoo.digits import DigitsSplit, accuracy, calibration_images, digits_repvgg, digits_split
from reparam_compiler.zoo.pspnet import PSPNet, pspnet
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from reparam_compiler.zoo.repvgg import (
    REPVGG,
    Architecture,
    RepVGG,
    repvgg_a0,
    repvgg_a1,
    repvgg_a2,
    repvgg_b0,
    repvgg_b1,
    repvgg_b1g2,
    repvgg_b1g4,
    repvgg_b2,
    repvgg_b2g4,
    repvgg_b3,
    repvgg_b3g4,
)
from reparam_compiler.zoo.resnet import RESNET, ResNet, resnet18, resnet34, resnet50, resnet101, resnet152

__all__ = [
    "REPVGG",
    "RESNET",
    "Architecture",
    "DigitsSplit",
    "PSPNet",
    "RepVGG",
    "ResNet",
    "accuracy",
    "calibration_images",
    "digits_repvgg",
    "digits_split",
    "pspnet",
    "randomise_batch_norm",
    "repvgg_a0",
    "repvgg_a1",
    "repvgg_a2",
    "repvgg_b0",
    "repvgg_b1",
    "repvgg_b1g2",
    "repvgg_b1g4",
    "repvgg_b2",
    "repvgg_b2g4",
    "repvgg_b3",
    "repvgg_b3g4",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]
