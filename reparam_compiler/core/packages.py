"""Which packages are installed, and what to type where one is missing.

Without extras this package installs numpy alone: a machine that only runs artifacts adds `[serve]`, one that fuses and prunes
`[torch]`, which the other extras that work on models bring.
"""

from collections.abc import Mapping

from reparam_compiler.errors import UnsupportedModelError

EXTRAS: Mapping[str, Mapping[str, str]] = {
    "torch": {
        "torch": "torch",
        "networkx": "networkx",
        "jaxtyping": "jaxtyping",
        "ml_dtypes": "ml_dtypes",
        "safetensors": "safetensors",
        "sklearn": "scikit-learn",
        "typer": "typer",
        "rich": "rich",
    },
    "onnx": {
        "onnx": "onnx",
        "onnx_graphsurgeon": "onnx-graphsurgeon",
        "onnxruntime": "onnxruntime",
        "onnxscript": "onnxscript",
    },
    "serve": {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"},
    "rpc": {"psutil": "psutil", "cloudpickle": "cloudpickle", "tornado": "tornado"},
    "tvm": {"xgboost": "xgboost-cpu"},
    "opencl": {"pyopencl": "pyopencl"},
    "report": {"bokeh": "bokeh", "igraph": "igraph", "jinja2": "jinja2"},
    "images": {"PIL": "pillow"},
}
"""For each extra that the library itself imports from: its modules, and the distributions that have them."""
_NEEDED: Mapping[str, str] = {
    "torch": "working on models needs",
    "onnx": "working on ONNX models needs",
    "serve": "compiling and running need",
    "rpc": "devices far away need",
    "tvm": "a search needs",
    "opencl": "an OpenCL device needs",
    "report": "a page as HTML needs",
    "images": "reading images needs",
}
"""What each extra is for."""

TESTED: Mapping[str, str] = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
"""Versions that others do not replace: with apache-tvm-ffi 0.1.15 a search crashes the process."""


def installed_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed, as this package is not when it is run from its folder."""
    from importlib import metadata  # with all of `email`: a fifth of the time that `--help` takes

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def install_line(extra: str) -> str:
    """What to type for an extra.

    >>> install_line("onnx")
    "pip install 'reparam_compiler[onnx]'"
    """
    return f"pip install 'reparam_compiler[{extra}]'"


def missing_package(error: ModuleNotFoundError) -> UnsupportedModelError | None:
    """An import that failed as an error with what to type; None where the module is in no extra.

    >>> missing_package(ModuleNotFoundError(name="networkx.algorithms"))
    UnsupportedModelError("networkx is not installed, and working on models needs it: pip install 'reparam_compiler[torch]'")
    >>> missing_package(ModuleNotFoundError(name="psutil"))
    UnsupportedModelError("psutil is not installed, and devices far away need it: pip install 'reparam_compiler[rpc]'")
    """
    module = str(error.name).partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None:
        return None
    return UnsupportedModelError(f"{module} is not installed, and {_NEEDED[extra]} it: {install_line(extra)}")
