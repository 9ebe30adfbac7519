"""`tvmc`, as a command and as the Python module that TVM had until 0.19 (`tvm.driver.tvmc`).

    from reparam_compiler import tvmc

    model = tvmc.load("resnet50.onnx")
    records = tvmc.tune(model, target="llvm", trials=64)
    package = tvmc.compile(model, target="llvm", tuning_records=records)
    result = tvmc.run(package, device="cpu")

The names below are imported when they are first asked for: a machine that only runs artifacts has tvm and numpy, no more.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from reparam_compiler.errors import ReparamError as TVMCException

if TYPE_CHECKING:
    from reparam_compiler.tvmc.commands import main
    from reparam_compiler.tvmc.model import TVMCModel, TVMCPackage, TVMCResult, compile, load, run, tune

__all__ = ["TVMCException", "TVMCModel", "TVMCPackage", "TVMCResult", "compile", "load", "main", "run", "tune"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'reparam_compiler.tvmc' has no attribute {name!r}")
    home = "commands" if name == "main" else "model"
    return getattr(import_module(f"reparam_compiler.tvmc.{home}"), name)
