"""The mode of torch that the public functions work in, whichever the caller is in, and one thread at a time."""

import contextlib
from collections.abc import Iterator

import torch

from reparam_compiler.core.locks import ProcessLock

_DEVICES = ("cpu", "cuda", "xpu", "mps")
"""The kinds of device that autocast is looked for on."""

_working = ProcessLock()
"""Held while a public function works. What torch's tracers and exporters put in the place of `nn.Module`'s calls, and warning
filters and stderr with it, is the whole process's: of two at once the later one puts back what the earlier one had set."""


@contextlib.contextmanager
def outside_modes() -> Iterator[None]:
    """Leaves inference mode and autocast for as long as it lasts, and lets no other thread in.

    Tensors that are made in inference mode count no writes, which the tracer asks for, have no gradients, which some criteria
    ask for, and stay so ever after. Under autocast a model of float32 shows values of bfloat16, which no norm of float32 folds
    into, and is exported with its casts.

    >>> with torch.inference_mode(), torch.autocast("cpu"), outside_modes():
    ...     torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.zeros(1).is_inference()
    (False, False, False)
    """
    with _working.held(), contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
