"""The costs of the paper's zoo at 224 x 224, counted by `cost/model.py` on the fused graphs: 11 models, 33 figures.

    python -m benchmarks.paper_table

Params in millions, cut to two decimals; FLOPs and Winograd MULs in billions, to one, as the paper prints them.
"""

import argparse
import math

import torch

from reparam_compiler.cost.model import Cost, cost
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.passes.fusion.fuse_branches import Options
from reparam_compiler.zoo.repvgg import REPVGG


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| model | params, M | FLOPs, G | Winograd MULs, G |", "|---|---|---|---|", sep="\n")
    for name in REPVGG:
        print(f"| {name} | {' | '.join(as_printed(fused_cost(name)))} |")


def fused_cost(name: str) -> Cost:
    """What a model of the zoo costs when it is fused, for one image."""
    model = torch.fx.symbolic_trace(REPVGG[name]().eval())
    graph = FxFrontend().read(model, (torch.zeros(1, 3, 224, 224),)).graph
    return cost(pipeline.run(graph, Options(verify=False)).graph)


def as_printed(found: Cost) -> tuple[str, str, str]:
    """A cost as the paper's table shows it."""
    params = math.floor(found.params / 1e4) / 100
    return f"{params:.2f}", f"{(found.flops or 0) / 1e9:.1f}", f"{(found.winograd_muls or 0) / 1e9:.1f}"


if __name__ == "__main__":
    main()
