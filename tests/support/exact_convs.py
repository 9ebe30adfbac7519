"""A conv in float64 by torch, in the layout of the kernels: what each kernel of a conv is compared with."""

import numpy as np
import torch

from reparam_compiler.lowering.conv.algorithms import ConvShape


def exact_conv(x: np.ndarray, weight: np.ndarray, shape: ConvShape) -> np.ndarray:
    """`N H W C` by `O kh kw Ig` -> `N H W O`."""
    top, left, bottom, right = shape.padding
    images, taps = (torch.from_numpy(array).double().permute(0, 3, 1, 2) for array in (x, weight))
    padded = torch.nn.functional.pad(images, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(padded, taps, None, shape.stride, 0, shape.dilation, shape.groups)
    return y.permute(0, 2, 3, 1).numpy()
