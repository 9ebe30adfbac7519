"""Imported before tvm by processes that only run artifacts: tvm imports torch where it can, which takes seconds."""

import sys

sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
