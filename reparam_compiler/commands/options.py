"""Options that several commands of `reparam` have, each written once; those of a word take the words of the library's table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from reparam_compiler.passes import choices

MODELS = (
    "[bold]MODEL[/] is an .onnx file, a .pt2 file of torch.export.save, or package.module:factory, which is "
    "imported and called. Files that can run code (.pt, and a .pt2 with pickles in it) need --unsafe-load."
)
"""What every command says of its first word."""


def one_of(words: Iterable[str]) -> dict[str, Any]:
    """What makes typer take one of these words, show them, and call any other wrong usage."""
    known = tuple(words)

    def parser(text: str) -> str:
        if text not in known:
            raise typer.BadParameter(f"found {text!r}; expected one of {', '.join(known)}")
        return text

    return {"parser": parser, "metavar": f"[{'|'.join(known)}]"}


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """What '0.5,0.5' says; raises BadParameter for no numbers."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} {text}: expected numbers, as in '0.5,0.5,0.5'") from None


Model = Annotated[str, typer.Argument(help="An .onnx, a .pt2, or package.module:factory.", show_default=False)]
Output = typer.Option("--output", "-o", help="The file to write: .onnx or .pt2.", show_default=False)
Shapes = Annotated[
    str | None,
    typer.Option(
        "--input-shapes",
        help="Shapes of the inputs: '[1,3,224,224]', or 'x:[1,3,224,224] mask:[1,10]'; a letter leaves one open: '[N,3,H,W]'.",
    ),
]
Constant = Annotated[
    bool, typer.Option("--weights-are-constant", help="Weights that an ONNX file lists as inputs too are constants.")
]
UnsafeLoad = Annotated[bool, typer.Option("--unsafe-load", help="Open pickles too: they can run any code.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Policy = Annotated[
    str,
    typer.Option(
        "--policy", help="Fuse what makes the model faster, or all that is exact.", **one_of(get_args(choices.Policy))
    ),
]
Importance = Annotated[
    str | None,
    typer.Option(help="How channels are ranked; without: what the quality takes, l1 without data.", **one_of(choices.CRITERIA)),
]
Allocation = Annotated[
    str,
    typer.Option(
        help="The same share of every layer, or the least important of the whole model, or what costs the least error.",
        **one_of(choices.ALLOCATIONS),
    ),
]
Quality = Annotated[str, typer.Option(help="What is done with calibration data.", **one_of(get_args(choices.Quality)))]
Calibration = Annotated[
    Path | None,
    typer.Option(help="Inputs as the model will see them: an .npz, an .npy, a folder of .npy or of images; 32 do much."),
]
Mean = Annotated[str | None, typer.Option(help="Images are normalised by: '0.485,0.456,0.406'.")]
Std = Annotated[str | None, typer.Option(help="Images are normalised by: '0.229,0.224,0.225'.")]
RoundTo = Annotated[int, typer.Option(min=1, help="Widths go to the nearest multiple; 1: the exact ratio.")]
MinChannels = Annotated[int, typer.Option(min=1, help="How many channels every layer keeps at least.")]
MaxRatio = Annotated[float, typer.Option(help="The largest share of its channels that a layer may lose.")]
Ignore = Annotated[list[str] | None, typer.Option(help="A layer, or a pattern, that keeps its width. Repeatable.")]
NoFuse = Annotated[bool, typer.Option("--no-fuse", help="Prune the model as it is.")]
KeepBn = Annotated[bool, typer.Option("--keep-bn", help="Leave the last batch norm of each block, to train on quantized.")]
MeasureCosts = Annotated[
    bool, typer.Option("--measure-costs", help="Decide by the speed of this machine, not of a usual CPU; takes a second.")
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="Say what is done, and where an error comes from; -vv: all.", show_default=False
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone, and what --json asks for.")]
Report = Annotated[
    Path | None,
    typer.Option("--report", help="Also write a page on what was done: .html, .json or .txt.", show_default=False),
]
