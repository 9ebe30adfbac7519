"""What a person calls a target -> `tvm.target.Target`.

    None, "native"                        this machine: its triple, its cpu, its cores
    "llvm", "cuda"                        a kind, on this machine: the same with "llvm" as None
    "llvm -mcpu=znver3 -num-cores 2"      the strings of the old tvmc, which TVM itself no longer reads
    "llvm -mcpu=x86-64"                   the baseline of an architecture, which runs on each of its machines
    "nvidia/nvidia-a100"                  a tag
    {"kind": "llvm", "mcpu": "znver3"}    TVM's own form, also as a JSON string

What a kind of target means to the rest of `lowering` is its backend's (`backends.backend_for`).
"""

import difflib
import json
import shlex
from collections.abc import Mapping
from typing import Any, TypeAlias

import tvm
from tvm.target import Target

from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.backends import BACKENDS, backend_for
from reparam_compiler.lowering.cpu.machine import native

TargetLike: TypeAlias = str | Mapping[str, Any] | Any | None  # Any: a tvm.target.Target


def resolve(target: TargetLike) -> Target:
    """The TVM target that `target` means.

    Raises LoweringError where it cannot be read, names an unknown cpu or attribute, or a kind that has no backend.
    """
    if isinstance(target, Target):
        return _checked(target)
    if target is None or target == "native":
        return Target(native())
    if isinstance(target, Mapping):
        config = dict(target)
    elif isinstance(target, str) and target.strip():
        config = _parse(target.strip())
    else:
        raise LoweringError(f"target: found {target!r}; expected {_accepted()}")
    if (backend := BACKENDS.get(str(config.get("kind")))) is not None:
        config = backend.completed(config)
    try:
        resolved = Target(config)
    except (ValueError, TypeError, RuntimeError) as refusal:
        raise LoweringError(
            f"target: TVM refuses {target!r}: {first_line(refusal).rstrip('.')}. Expected {_accepted()}"
        ) from refusal
    return _checked(resolved)


def describe(target: Target) -> str:
    """One JSON object, from which `resolve` makes the same target again."""
    kept = {key: value for key, value in json.loads(str(target)).items() if key not in {"keys", "tag"}}
    return json.dumps(kept, sort_keys=True)


def _parse(text: str) -> dict[str, Any]:
    """The dict of a JSON text, a tag, or an old-style string (`kind -key=value -key value`)."""
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except json.JSONDecodeError as refusal:
            raise LoweringError(f"target: {text!r} is no JSON object: {refusal}. Expected {_accepted()}") from refusal
    try:
        head, *words = shlex.split(text)
    except ValueError as refusal:
        raise LoweringError(f"target: {text!r} cannot be split into words: {refusal}. Expected {_accepted()}") from refusal
    if "," in head or any(word == "," or word in BACKENDS for word in words):
        raise LoweringError(
            f"target: {text!r} is a composite target; one target compiles the whole model here. Pass one of {tuple(BACKENDS)}"
        )
    config: dict[str, Any] = {"tag": head} if head in tvm.target.list_tags() else {"kind": head}
    if "kind" in config and head not in BACKENDS:
        near = difflib.get_close_matches(head, [*BACKENDS, *map(str, tvm.target.list_tags())], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        kinds = tuple(BACKENDS)
        raise LoweringError(f"target: {head!r} is neither a kind {kinds} nor a tag of TVM.{hint} Expected {_accepted()}")
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name:
            raise LoweringError(f"target: {word!r} in {text!r} is no option; expected -key=value or -key value")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("-") else "true"
        config[name] = typed(name, value)
    return config


def typed(name: str, value: str) -> Any:
    """An attribute of a target as TVM wants it, from a word: `typed("mattr", "+avx2,+fma")` is `["+avx2", "+fma"]`."""
    if name in {"mattr", "keys", "libs", "cl-opt"}:
        return value.split(",")
    if name in {"mcpu", "mtriple", "arch", "model", "device", "mabi", "mfloat-abi"}:
        return value
    if value.lstrip("-").isdigit():
        return int(value)
    return {"true": True, "false": False}.get(value.lower(), value)


def _checked(target: Target) -> Target:
    kind = str(target.kind.name)
    if kind not in BACKENDS:
        raise LoweringError(f"target: kind {kind!r} is not supported; expected one of {tuple(BACKENDS)}")
    return backend_for(target).checked()


def _accepted() -> str:
    kinds = ", ".join(f'"{kind}"' for kind in BACKENDS)
    return (
        f'None (this machine), {kinds}, a string like "llvm -mcpu=znver3 -num-cores 2", '
        'a tag like "nvidia/nvidia-a100", or a dict like {"kind": "llvm", "mcpu": "znver3"}'
    )
