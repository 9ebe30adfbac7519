"""What a server does with a model: `answer`, by which name clients find it in TVM's table of functions.

    client --(TVM's RPC)--> answer(message) -> an Executable of this machine, by the code that runs it anywhere -> message

So a model far away has what one at hand has: its own kind's machines, weights packed there, cold caches, a profile by kernel.
A session of TVM's server is a process of its own, and the models that it loaded end with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import tvm_ffi

from reparam_compiler.core.files import scratch_folder
from reparam_compiler.errors import LoweringError, class_and_line
from reparam_compiler.lowering.rpc.messages import read, written
from reparam_compiler.lowering.rpc.wire import NAME
from reparam_compiler.lowering.runtime.executable import Executable
from reparam_compiler.lowering.runtime.loading import load
from reparam_compiler.lowering.runtime.machines import Machines
from reparam_compiler.lowering.search.pairs import Repeats, in_pairs

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array

    Answer = tuple[dict[str, Any], Sequence[Array]]

LOADED: list[Executable] = []
"""The models of this session, by their numbers."""


def offer() -> None:
    """Have TVM's servers of this process answer our clients."""
    tvm_ffi.register_global_func(NAME, answer, override=True)


def answer(content: bytes) -> bytearray:
    """The answer to a message; of what failed its class and its line."""
    try:
        about, arrays = read(bytes(content))
        found, more = ACTIONS[about.pop("do")](*arrays, **about)
        return bytearray(written(found, more))
    except LoweringError as refusal:
        return bytearray(written({"refusal": str(refusal)}))
    except Exception as error:  # noqa: BLE001 - whatever a model does, the client is to hear of it
        return bytearray(written({"refusal": class_and_line(error)}))


def _load(artifact: "Array") -> "Answer":
    """A number for the model in the bytes of an artifact; the target that is taken, and the cores of a run."""
    LOADED.append(_loaded(artifact))
    return {"model": len(LOADED) - 1, "target": LOADED[-1].target, "threads": LOADED[-1].threads}, ()


def _run(*arrays: "Array", model: int, threads: int) -> "Answer":
    return {}, _machines(model, arrays, threads).run(arrays)


def _measure(*arrays: "Array", model: int, threads: int, **how: Any) -> "Answer":
    return {"seconds": _machines(model, arrays, threads).measured(arrays, **how)}, ()


def _profile(*arrays: "Array", model: int, threads: int, runs: int) -> "Answer":
    return {"runs": [[asdict(call) for call in run] for run in _machines(model, arrays, threads).profiled(arrays, runs)]}, ()


def _compare(artifact: "Array", *arrays: "Array", threads: int, **repeats: Any) -> "Answer":
    """What a candidate of a search takes, which is the last variant of a file, beside the rule's, which is the first of two."""
    *rule, candidate = (_on(variant.ready(), threads) for variant in _loaded(artifact).variants)
    return asdict(in_pairs(candidate, rule[0] if rule else None, arrays, Repeats(**repeats))), ()


def _loaded(artifact: "Array") -> Executable:
    with scratch_folder() as folder:
        path = folder / "model"
        path.write_bytes(artifact.tobytes())
        return load(path)


def _machines(model: int, arrays: "Sequence[Array]", threads: int) -> Machines:
    """What runs these inputs as they are, on so many cores."""
    return _on(LOADED[model].fitting(arrays).variants[0].ready(), threads)


def _on(machines: Machines, threads: int) -> Machines:
    return machines if threads == machines.threads else machines.clone(threads)


ACTIONS: dict[str, "Callable[..., Answer]"] = {
    "load": _load,
    "run": _run,
    "measure": _measure,
    "profile": _profile,
    "compare": _compare,
}
