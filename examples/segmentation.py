"""PSPNet on a RepVGG backbone, as in the paper's Table 8: fused, and compiled where that is asked for.

    python examples/segmentation.py [--backbone RepVGG-B1g2] [--pixels 713] [--compile net.tar]

The backbone gives features of an eighth of the image: the last two stages have dilation for strides; with "fast" behind its
name only the last five layers have it. Dilated branches are one dilated conv when they are fused, not a dense one of 5x5 or
9x9.

Weights are random. Images of 48 k - 7 pixels (41, 233, 473, 713) give pooling cells of equal size.
"""

import argparse

import torch

import reparam_compiler
from reparam_compiler.zoo import pspnet, randomise_batch_norm
from reparam_compiler.zoo.pspnet import BACKBONES


def main() -> None:
    """Make, fuse, compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="RepVGG-A0", choices=[name for name in BACKBONES if name.startswith("RepVGG")])
    parser.add_argument("--pixels", type=int, default=233)
    parser.add_argument("--compile", metavar="FILE", help="compile for this machine, time it and write it")
    given = parser.parse_args()

    torch.manual_seed(0)
    model = randomise_batch_norm(pspnet(given.backbone)).eval()
    example = (torch.randn(1, 3, given.pixels, given.pixels),)
    fused, report = reparam_compiler.fuse(model, example, return_report=True)
    print(f"{given.backbone}: {report.before.convs} convs -> {report.after.convs}")
    assert report.before.flops is not None
    assert report.after.flops is not None
    assert report.whole_model is not None
    print(f"{report.before.flops / 1e9:.2f} G multiply-adds -> {report.after.flops / 1e9:.2f} G")
    print(f"differs by {report.whole_model.difference.relative:.1e} ({report.whole_model.how})")
    dilations = sorted({m.dilation[0] for m in fused.modules() if isinstance(m, torch.nn.Conv2d)})
    print(f"dilations of its convs: {dilations}")

    if given.compile is not None:
        executable = reparam_compiler.compile(fused, example, fuse=False)
        print(f"{1e3 * executable.time(example[0].numpy()):.1f} ms, {executable.threads} threads")
        executable.save(given.compile)


if __name__ == "__main__":
    main()
