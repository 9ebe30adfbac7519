"""torch's exporters without what they print besides: errors are raised, and that is enough."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """They warn of their own deprecations, log what is raised anyway, and print the graph as far as they came to stderr."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.export", "torch.onnx", "torch._export", "torch._dynamo", "torch.fx", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
