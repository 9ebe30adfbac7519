"""Fuses an ONNX file of somebody else's, checks the result beside it and writes it.

    python examples/somebodys_onnx.py theirs.onnx fused.onnx

Nothing is known but the file. Which node stops a block that stays is said; open sizes of the input (but for the batch) stay
open.
"""

import argparse
import sys
from pathlib import Path

import onnx

from reparam_compiler import fuse, inspect
from reparam_compiler.errors import ReparamError


def main() -> int:
    """The exit code: 1 where the file cannot be read or fused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("fused", type=Path)
    given = parser.parse_args()
    try:
        dry = inspect(given.model)
        print(f"{len(dry.fusions)} fusions; {len(dry.refusals)} merges and norms stay")
        for refusal in dry.refusals[:5]:
            print(f"  {refusal.node}: {refusal.reason}")
        fused, report = fuse(given.model, return_report=True)  # runs both in ONNX Runtime, if it is installed
    except ReparamError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.closing()))
    onnx.save(fused, given.fused)
    print(f"wrote {given.fused} ({given.fused.stat().st_size / 1e6:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
