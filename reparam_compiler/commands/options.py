"""Options that several commands of `reparam` have, each written once."""

from enum import StrEnum
from typing import Annotated

import typer


class FusePolicy(StrEnum):
    """What is fused."""

    cost = "cost"
    always = "always"


class Importance(StrEnum):
    """How channels are ranked."""

    l1 = "l1"
    l2 = "l2"
    bn_scale = "bn_scale"
    fpgm = "fpgm"
    geometric = "geometric"
    random = "random"
    taylor = "taylor"
    hessian = "hessian"
    energy = "energy"
    lasso = "lasso"
    obs = "obs"
    obs_patches = "obs_patches"


class Allocation(StrEnum):
    """Where channels are taken from."""

    uniform = "uniform"
    whole = "global"
    sensitivity = "sensitivity"


class Quality(StrEnum):
    """What is done with calibration data."""

    fast = "fast"
    standard = "standard"
    high = "high"


Model = Annotated[str, typer.Argument(help="An .onnx, a .pt2, or package.module:factory.", show_default=False)]
Output = typer.Option("--output", "-o", help="The file to write: .onnx or .pt2.", show_default=False)
Shapes = Annotated[
    str | None, typer.Option("--input-shapes", help="Shapes that the model leaves open: 'x:[1,3,224,224] mask:[1,10]'.")
]
UnsafeLoad = Annotated[bool, typer.Option("--unsafe-load", help="Open pickles too: they can run any code.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Policy = Annotated[FusePolicy, typer.Option("--policy", help="Fuse what makes the model faster, or all that is exact.")]
KeepBn = Annotated[bool, typer.Option("--keep-bn", help="Leave the last batch norm of each block, to train on quantized.")]
MeasureCosts = Annotated[
    bool, typer.Option("--measure-costs", help="Decide by the speed of this machine, not of a usual CPU; takes a second.")
]
