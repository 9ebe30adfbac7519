"""torch.compile with branches fused before inductor sees them: a line for models that stay in torch.

    python examples/torch_compile.py [--inner inductor]

dynamo's graphs are fused one by one, so that control flow in Python is no obstacle, and the model is not touched. Weights
that change in place between two calls are fused anew. `--inner` names the backend that gets the fused graphs; "eager"
compiles nothing.
"""

import argparse

import torch
from torch import Tensor, nn

from reparam_compiler.zoo import Architecture, RepVGG, randomise_batch_norm


class Gated(nn.Module):
    """A net that looks at its input in Python: dynamo makes a graph before that and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = RepVGG(Architecture((2, 2), (16, 32), strides=(2, 2)), num_classes=10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.net.stages(x)
        if features.mean() > 0:  # a graph break
            features = features - features.mean()
        return self.net.linear(features.mean((2, 3)))


def main() -> None:
    """Compile, call, change a weight, call again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inner", default="inductor")
    given = parser.parse_args()

    torch.manual_seed(0)
    model = randomise_batch_norm(Gated()).eval()
    x = torch.randn(4, 3, 64, 64)
    fast = torch.compile(model, backend="reparam", options={"inner": given.inner})
    with torch.inference_mode():  # with gradients the branches stay: training needs them
        print(f"differs by {error(fast(x), model(x)):.1e}")
        model.net.linear.weight.mul_(2.0)
        next(model.net.stages.parameters()).mul_(0.5)  # of a conv in a branch: what it went into is fused anew
        print(f"after its weights changed, by {error(fast(x), model(x)):.1e}")


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest output."""
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
