"""Whether what a command shall write can be written: better asked before minutes of work than after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reparam_compiler.models.io import check_output


def check_model_output(model: Any, output: Path, inputs: Sequence[Any] | None) -> None:
    """Raises UnsupportedModelError where the model cannot be written to such a file, and as `check_file`."""
    check_output(model, output, example_inputs=inputs)
    check_file(output)


def check_file(output: Path) -> None:
    """Raises FileNotFoundError where the folder of a file does not exist, IsADirectoryError where the file is a folder."""
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output}: the folder {output.parent} does not exist; make it first")
    if output.is_dir():
        raise IsADirectoryError(f"{output}: found a folder; expected the name of a file")
