"""The variants of a model to one file, and what its manifest says of them.

    manifest = { arrays: what is stored
                 weights: those arrays, packed
                 variants: [{ target, inputs, outputs, kernels, memory, weights }] }

A weight names its array by its place, a variant its weights: each is there once. What the files are, `archive` says.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reparam_compiler.core.files import written_whole
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.runtime.archive import (
    FORMAT,
    FORMATS,
    LIBRARY,
    MAGIC,
    Format,
    format_of,
    manifest_source,
    variants_described,
    write_library,
    write_tar,
)
from reparam_compiler.lowering.runtime.linking import export_library
from reparam_compiler.lowering.runtime.variant import Variant
from reparam_compiler.lowering.runtime.weights import Weight, distinct
from reparam_compiler.lowering.target import TargetLike, describe, resolve


def save(
    path: Path,
    variants: Sequence[Variant],
    about: Mapping[str, Any],
    *,
    form: Format | None,
    compiler: str | None,
    options: Sequence[str],
) -> None:
    """Write the variants of a model to `path`, whole or not at all.

    Args:
        about: what else the manifest says.
        form, compiler, options: as for `Executable.save`.

    Raises: LoweringError as `Executable.save`.
    """
    form = checked_form(path, form, [variant.target for variant in variants])
    if any(variant.library is None for variant in variants):
        raise LoweringError(f"{path}: this Executable holds no library to save; make one with compile() or load()")
    if not path.parent.is_dir():
        raise LoweringError(f"{path}: the folder {path.parent} does not exist; make it first")
    weights = distinct(weight for variant in variants for weight in variant.weights)
    arrays = list({id(weight.stored): weight.stored for weight in weights}.values())
    with tempfile.TemporaryDirectory() as folder, written_whole(path) as whole:
        linker = _Linker(Path(folder), compiler, options)
        others = [linker.linked(variant) for variant in variants[1:]]
        manifest = {"magic": MAGIC, "format": FORMAT, **about, **_described(variants, weights)}
        for entry, library in zip(manifest["variants"][1:], others, strict=True):
            entry["size"] = len(library)
        libraries = [linker.linked(variants[0], manifest), *others]
        if form == "tar":
            write_tar(whole, libraries, manifest, arrays)
            return
        if (described := variants_described(libraries[0])) != len(variants):  # of one that was loaded, which is linked already
            raise LoweringError(
                f"{path}: the library that was loaded describes {described} variants, and {len(variants)} shall be saved; save "
                "all of what was loaded, write an archive, .tar, or compile the model again"
            )
        write_library(whole, libraries, [weight.value.numpy() for weight in weights])


def checked_form(path: Path, form: Format | None, targets: Sequence[TargetLike]) -> Format:
    """What a file of code for these targets is written as; asked before a model is compiled, which takes longer.

    Raises: LoweringError where the format is none, or code for several targets, or code that is not linked, shall be one
    library.
    """
    backends = [backend_for(resolve(target)) for target in targets]
    form = format_of(path) if form is None else form
    if form not in FORMATS:
        raise LoweringError(f"{path}: found format {form!r}; expected one of {FORMATS}")
    if form == "so" and not all(backend.linked for backend in backends):
        raise LoweringError(
            f"{path}: found code for {backends[0].kind}, which is not linked: its device compiles it. Write an archive, .tar"
        )
    if form == "so" and (count := len({describe(backend.target) for backend in backends})) > 1:
        raise LoweringError(
            f"{path}: found code for {count} targets; a library holds weights packed for one. Write an archive, .tar, of "
            "which each machine takes its own, or compile for one target"
        )
    return form


def _described(variants: Sequence[Variant], weights: Sequence[Weight]) -> dict[str, Any]:
    """What a manifest says of variants and their weights."""
    stored = {id(weight.stored): weight.stored for weight in weights}
    array_at = {key: place for place, key in enumerate(stored)}
    weight_at = {id(weight): place for place, weight in enumerate(weights)}
    return {
        "arrays": [{"dtype": str(array.dtype), "shape": list(array.shape)} for array in stored.values()],
        "weights": [weight.described(array_at[id(weight.stored)]) for weight in weights],
        "variants": [
            {
                "target": variant.target,
                "inputs": [asdict(spec) for spec in variant.inputs],
                "outputs": [asdict(spec) for spec in variant.outputs],
                "kernels": [asdict(kernel) for kernel in variant.kernels],
                "memory": None if variant.memory is None else asdict(variant.memory),
                "chosen_by": variant.chosen_by,
                "seconds": variant.seconds,
                "weights": [weight_at[id(weight)] for weight in variant.weights],
            }
            for variant in variants
        ],
    }


class _Linker:
    """Links libraries in a folder. compiler, options: as for `Executable.save`."""

    def __init__(self, folder: Path, compiler: str | None, options: Sequence[str]) -> None:
        self._folder, self._compiler, self._options = folder, compiler, options

    def linked(self, variant: Variant, manifest: dict[str, Any] | None = None) -> bytes:
        """The bytes of a library, with the manifest in it where it is linked; of one that was loaded the file's own."""
        own = not variant.backend.linked
        if own or isinstance(variant.library, bytes):  # TVM cannot export a loaded library again
            if self._compiler is not None or self._options:
                found = f"compiler={self._compiler!r}" if self._compiler else f"compiler_options={list(self._options)!r}"
                why = "its device compiles the code" if own else "the library is linked already; compile the model"
                raise LoweringError(f"save: found {found}, but {why}")
            return variant.library if isinstance(variant.library, bytes) else bytes(variant.library.to_bytes())
        library, source = self._folder / LIBRARY, self._folder / "manifest.cc"
        if manifest is not None:
            source.write_text(manifest_source(manifest))
        export_library(
            variant.library,
            library,
            sources=() if manifest is None else (source,),
            compiler=self._compiler,
            options=self._options,
            target=variant.target,
        )
        return library.read_bytes()
