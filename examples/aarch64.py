"""Compiles a net for an aarch64 board, on a machine that is none.

    python examples/aarch64.py [--cpu cortex-a72] [--cross-compiler aarch64-linux-gnu-g++ -o net.tar]

Compiling needs no toolchain; an artifact is linked by the board's compiler (Debian: apt install g++-aarch64-linux-gnu). What
is compiled is compared with the model through a twin for this machine, as no board is here; `tvmc server` on the board lets
`tvmc run` and `tvmc tune` measure there.
"""

import argparse
import shutil

import torch

import reparam_compiler
from reparam_compiler.zoo import Architecture, RepVGG, randomise_batch_norm


def main() -> None:
    """Compile, say which kernels there are, link where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default="cortex-a72")
    parser.add_argument("--cores", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--cross-compiler", default="aarch64-linux-gnu-g++")
    parser.add_argument("-o", "--output")
    given = parser.parse_args()

    torch.manual_seed(0)
    model = randomise_batch_norm(RepVGG(Architecture((1, 1), (16, 32), strides=(2, 2)), num_classes=10)).eval()
    target = f"llvm -mtriple=aarch64-linux-gnu -mcpu={given.cpu} -num-cores {given.cores}"
    executable = reparam_compiler.compile(model, (torch.randn(1, 3, given.pixels, given.pixels),), target=target)
    print(f"{executable.target}; runs here: {executable.runs_here}")
    for kernel in executable.kernels:
        print(f"  {kernel}")
    if given.output is None:
        return
    if shutil.which(given.cross_compiler) is None:
        raise SystemExit(f"{given.cross_compiler} is not installed; expected a C++ compiler for aarch64")
    executable.save(given.output, compiler=given.cross_compiler)


if __name__ == "__main__":
    main()
