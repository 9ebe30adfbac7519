"""Prunes the embedded digits net and fine-tunes what is left.

    fuse -> prune (repaired on 256 training images) -> SGD on cross entropy over the training images

    python examples/fine_tune_digits.py [--ratio 0.7] [--epochs 10] [--learning-rate 1e-3] [--clip 1.0] [--seed 0]

A fused net has no batch norm to hold its activations, so it trains within narrower bounds than the net that it came from:
fused nets pruned at 0.7 were seen to diverge under SGD with a learning rate of 5e-3 and no clipping, while 1e-3 with the
gradient clipped to a norm of 1 is stable (design/pruning.md, "Fine-tuning a plain net"). These are the settings here. They are
careful, not fast: where a larger step holds, as it may on this small net, it learns more in each epoch.

The calibration images are training images; the 719 test images are only counted. Seconds on one core.
"""

import argparse

import numpy as np
import torch
from torch import nn

from reparam_compiler import fuse, prune
from reparam_compiler.zoo.digits import accuracy, calibration_images, digits_repvgg, digits_split

BATCH = 64
LEARNING_RATE = 1e-3
MOMENTUM = 0.9
LARGEST_GRADIENT = 1.0


def main() -> None:
    """Parse the arguments, prune, fine-tune, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--clip", type=float, default=LARGEST_GRADIENT, help="largest norm of the gradient over all weights")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    example = (torch.zeros(1, 1, 16, 16),)
    fused = fuse(digits_repvgg(), example)
    print(f"fused                     {on_test(fused):7.2%}   {weights(fused):,} weights")
    pruned = prune(fused, example, ratio=arguments.ratio, calibration=calibration_images())
    print(f"pruned at {arguments.ratio:.2f}            {on_test(pruned):7.2%}   {weights(pruned):,} weights")
    settings = {"learning_rate": arguments.learning_rate, "clip": arguments.clip, "seed": arguments.seed}
    fine_tune(pruned, epochs=arguments.epochs, **settings)
    print(f"after {arguments.epochs:2} epochs of SGD    {on_test(pruned):7.2%}")


def fine_tune(
    model: nn.Module, *, epochs: int, learning_rate: float = LEARNING_RATE, clip: float = LARGEST_GRADIENT, seed: int = 0
) -> None:
    """Trains the model, in place, on the training images.

    Args:
        model: from `N 1 16 16` to `N 10` logits.
        epochs: passes over the images.
        learning_rate: of SGD with momentum 0.9.
        clip: the largest norm of the gradient, over all parameters.
        seed: of the images' order.
    """
    split = digits_split()
    images, labels = torch.from_numpy(split.train_images.copy()), torch.from_numpy(split.train_labels.copy())
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=MOMENTUM)
    order = torch.Generator().manual_seed(seed)
    loss_of = nn.CrossEntropyLoss()
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=order).split(BATCH):
            optimiser.zero_grad()
            loss_of(model(images[batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
    model.eval()


def on_test(model: nn.Module) -> float:
    """The share of the test images that a model gets right."""

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images.copy())).numpy()

    split = digits_split()
    return accuracy(predict, split.test_images, split.test_labels)


def weights(model: nn.Module) -> int:
    """How many weights and biases a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
