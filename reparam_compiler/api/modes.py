"""The mode of torch that the public functions work in, whichever the caller is in."""

import contextlib
from collections.abc import Iterator

import torch

_DEVICES = ("cpu", "cuda", "xpu", "mps")
"""The kinds of device that autocast is looked for on."""


@contextlib.contextmanager
def outside_modes() -> Iterator[None]:
    """Leaves inference mode and autocast for as long as it lasts.

    Tensors that are made in inference mode count no writes, which the tracer asks for, have no gradients, which some criteria
    ask for, and stay so ever after. Under autocast a model of float32 shows values of bfloat16, which no norm of float32 folds
    into, and is exported with its casts.

    >>> with torch.inference_mode(), torch.autocast("cpu"), outside_modes():
    ...     torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.zeros(1).is_inference()
    (False, False, False)
    """
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
