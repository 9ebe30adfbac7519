"""The mode of torch that the public functions work in, whichever the caller is in."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leaves inference mode for as long as it lasts.

    Tensors that are made in it count no writes, which the tracer asks for, have no gradients, which some criteria ask for, and
    stay so ever after.

    >>> with torch.inference_mode(), outside_inference_mode():
    ...     torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.zeros(1).is_inference()
    (False, True, False)
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False):
        yield
