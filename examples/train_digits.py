"""Trains the embedded digits RepVGG and writes the weights that the package ships.

    loss = cross entropy with label smoothing 0.1, over images shifted, turned and scaled at random

    python examples/train_digits.py [--epochs 80] [--seed 0] [-o reparam_compiler/zoo/digits_repvgg.safetensors]

Training uses `digits_split().train_images` alone (1,078 images of 16 x 16); the 719 test images are looked at once, at
the end, to print the accuracy. A minute or two on two cores.
"""

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from reparam_compiler.zoo.digits import WEIGHTS, accuracy, digits_repvgg, digits_split

BATCH = 64
LEARNING_RATE = 0.1  # SGD with momentum, one cosine to zero after a warm-up of five epochs
WARM_UP = 5
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
SHIFT = 0.12  # of half the image's width: one pixel
TURN = 0.2  # radians
STRETCH = 0.12


def main() -> None:
    """Parse the arguments, train, report, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()

    split = digits_split()
    started = time.perf_counter()
    model = train(
        torch.from_numpy(split.train_images.copy()),
        torch.from_numpy(split.train_labels.copy()),
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    seconds = time.perf_counter() - started

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images.copy())).numpy()

    on_train = accuracy(predict, split.train_images, split.train_labels)
    on_test = accuracy(predict, split.test_images, split.test_labels)
    print(f"{seconds:.0f} s; accuracy {on_train:.2%} on the training part, {on_test:.2%} on the test part")
    write(model, arguments.output, {"test_accuracy": f"{on_test:.4f}", "split": split.fingerprint})
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.2f} MB)")


def train(images: Tensor, labels: Tensor, *, epochs: int, seed: int) -> nn.Module:
    """The digits net, trained.

    Args:
        images: `N 1 16 16`, from 0 to 1.
        labels: `N`.
        epochs: passes over the images.
        seed: of the weights, the order and the distortions.

    Returns:
        The net in training form, in eval mode.
    """
    torch.manual_seed(seed)
    model = digits_repvgg(pretrained=False).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    kept = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept}], lr=LEARNING_RATE, momentum=MOMENTUM
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda epoch: rate(epoch, epochs))
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels)).split(BATCH):
            loss = loss_of(model(distort(images[batch])), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(batch)
        schedule.step()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}: loss {total / len(labels):.3f}", flush=True)
    return model.eval()


def rate(epoch: int, epochs: int) -> float:
    """The share of the learning rate in this epoch: a linear warm-up, then half a cosine."""
    if epoch < WARM_UP:
        return (epoch + 1) / (WARM_UP + 1)
    return 0.5 * (1 + math.cos(math.pi * (epoch - WARM_UP) / max(1, epochs - WARM_UP)))


def distort(images: Tensor) -> Tensor:
    """The images, each turned, stretched and shifted a little, by an affine map of its own."""
    count = len(images)
    turn = TURN * (2 * torch.rand(count) - 1)
    stretch = 1 + STRETCH * (2 * torch.rand(count, 2) - 1)
    shift = SHIFT * (2 * torch.rand(count, 2) - 1)
    rows = (
        torch.stack([turn.cos() * stretch[:, 0], -turn.sin(), shift[:, 0]], dim=1),
        torch.stack([turn.sin(), turn.cos() * stretch[:, 1], shift[:, 1]], dim=1),
    )
    grid = nn.functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def write(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the state dict as safetensors, whole or not at all."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(save(model.state_dict(), metadata))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
