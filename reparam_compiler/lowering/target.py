"""What a person calls a target -> `tvm.target.Target`.

    None, "native"                        this machine: its triple, its cpu, its cores
    "llvm", "cuda", "opencl"              a kind, on this machine: the same with "llvm" as None
    "llvm -mcpu=znver3 -num-cores 2"      the strings of the old tvmc, which TVM itself no longer reads
    "llvm -mcpu=x86-64"                   the baseline of an architecture, which runs on each of its machines
    "llvm -mcpu=x86-64-v2,v3,v4"          several cpus of it: code for each, of which a machine takes its best
    "nvidia/nvidia-a100"                  a tag
    {"kind": "llvm", "mcpu": "znver3"}    TVM's own form, also as a JSON string

What a kind of target means to the rest of `lowering` is its backend's (`backends.backend_for`).
"""

import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import tvm
from tvm.target import Target

from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.backends import BACKENDS, backend_for
from reparam_compiler.lowering.cpu.machine import native

TargetLike: TypeAlias = str | Mapping[str, Any] | Sequence[Any] | Any | None  # Any: a tvm.target.Target
LEVEL = re.compile(r"(?P<family>.+-)?v\d+")


def resolve(target: TargetLike) -> Target:
    """The TVM target that `target` means.

    Raises LoweringError where it cannot be read, names an unknown cpu or attribute, or a kind that has no backend; or where it
    is several.
    """
    found = resolve_all(target)
    if len(found) > 1:
        cpus = ", ".join(str(one.attrs.get("mcpu", one.kind.name)) for one in found)
        raise LoweringError(f"target: found {len(found)} targets ({cpus}); expected one here")
    return found[0]


def resolve_all(target: TargetLike) -> tuple[Target, ...]:
    """The TVM targets that `target` means: one, or those of a list of cpus or targets, each once.

    >>> [str(one.attrs["mcpu"]) for one in resolve_all("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v2,v3")]
    ['x86-64-v2', 'x86-64-v3']

    Raises LoweringError as `resolve`, and where they are of several kinds.
    """
    if isinstance(target, Target):
        return (_checked(target),)
    if target is None or target == "native":
        return (Target(native()),)
    if isinstance(target, list | tuple) and target:
        found = [one for each in target for one in resolve_all(each)]
    elif isinstance(target, Mapping):
        found = [_resolved(config, target) for config in _for_each_cpu(dict(target))]
    elif isinstance(target, str) and target.strip():
        found = [_resolved(config, target) for config in _for_each_cpu(_parse(target.strip()))]
    else:
        raise LoweringError(f"target: found {target!r}; expected {_accepted()}")
    if len(kinds := {str(one.kind.name) for one in found}) > 1:
        raise LoweringError(f"target: found targets of the kinds {', '.join(sorted(kinds))}; an artifact is for one of them")
    return tuple({describe(one): one for one in found}.values())


def _for_each_cpu(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The attributes of a target for each cpu that its mcpu lists; "v3" behind "x86-64-v2" is "x86-64-v3"."""
    cpus = [name.strip() for name in str(config.get("mcpu", "")).split(",")]
    if len(cpus) == 1:
        return [config]
    levels = [LEVEL.fullmatch(name) for name in cpus]
    family = levels[0]["family"] if levels[0] else None
    whole = [(family or "") + name if level and not level["family"] else name for name, level in zip(cpus, levels, strict=True)]
    return [{**config, "mcpu": name} for name in whole]


def _resolved(config: dict[str, Any], target: TargetLike) -> Target:
    """The target of attributes. target: as it was asked for."""
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
    tags = [*map(str, tvm.target.list_tags())]  # TVM's own mapping takes no word that is no UTF-8
    config: dict[str, Any] = {"tag": head} if head in tags else {"kind": head}
    if "kind" in config and head not in BACKENDS:
        near = difflib.get_close_matches(head, [*BACKENDS, *tags], n=3, cutoff=0.5)
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
