"""The files an artifact can be: an archive, or one shared library that describes itself.

    module.tar = tar { manifest.json, model.so }        model.so = ELF { kernels, parameters, symbol reparam_manifest }

The library holds the manifest in both, so that a library taken out of its archive is an artifact too:

    reparam_manifest = MARK \\n <64 hex digits> \\n <manifest as JSON> \\0

The digits are the SHA-256 of the library with zeros in their place. The manifest is found by its mark, without loading
the library, so that one that was cut, damaged, or made for another machine is refused before any of its code runs.

Members of an archive are read by name and written only into a fresh folder of our own, so an archive cannot write
elsewhere; but a library is machine code: load only artifacts that you trust.
"""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any, Literal

from reparam_compiler.errors import LoweringError, first_line

Format = Literal["tar", "so"]

FORMATS: tuple[Format, ...] = ("tar", "so")
FORMAT = 2
"""The version that is written; 1 had no manifest inside the library."""
MAGIC = "reparam_compiler artifact"
MANIFEST, LIBRARY = "manifest.json", "model.so"
SYMBOL = "reparam_manifest"
MARK = b"\x01reparam_compiler manifest\x02"
OLD_TVMC = {"mod.so", "mod.tar", "mod.json", "mod.params", "metadata.json"}
DIGITS = 64
ADVICE = "expected a file that Executable.save or `tvmc compile` wrote; write it again"


def format_of(path: Path) -> Format:
    """What a file of this name is written as where nobody says."""
    return "so" if path.suffix == ".so" else "tar"


def manifest_source(manifest: dict[str, Any]) -> str:
    """C++ that defines `reparam_manifest`, to be linked into the library and then sealed."""
    content = MARK + b"\n" + b"0" * DIGITS + b"\n" + _as_json(manifest) + b"\0"
    numbers = ",".join(str(byte) for byte in content)
    kept = '__attribute__((visibility("default"), used))'  # a const of C++ is not exported unasked
    kind = f"const unsigned char {SYMBOL}[]"
    return f'extern "C" {{\nextern {kind};\n{kept} {kind} = {{{numbers}}};\n}}\n'


def seal(library: bytes) -> bytes:
    """The library with its digest in the place that `manifest_source` left for it."""
    start = _digits_at(library)
    return library[:start] + _digest(library, start) + library[start + DIGITS :]


def write_tar(path: Path, library: bytes, manifest: dict[str, Any]) -> None:
    """An archive of the library and its manifest."""
    described = {**manifest, "sha256": hashlib.sha256(library).hexdigest()}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in ((MANIFEST, _as_json(described)), (LIBRARY, library)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """The manifest and the library of an artifact of either format.

    Raises: LoweringError where the file is missing, truncated, damaged, foreign, or written in a newer format.
    """
    if not path.is_file():
        raise LoweringError(f"{path}: no such file; {ADVICE}")
    with path.open("rb") as file:
        elf = file.read(4) == b"\x7fELF"
    return _read_library(path) if elf else _read_tar(path)


def holds_manifest(library: bytes) -> bool:
    """Whether a library describes itself; those of format 1 do not."""
    return MARK in library


def _read_library(path: Path) -> tuple[dict[str, Any], bytes]:
    library = path.read_bytes()
    if not holds_manifest(library):
        raise LoweringError(f"{path}: found a truncated library, or one of something else (it holds no manifest); {ADVICE}")
    start = _digits_at(library)
    end = library.find(b"\0", start)
    if library[start : start + DIGITS] != _digest(library, start) or end < 0:
        raise LoweringError(f"{path}: the library is truncated or damaged (its SHA-256 is not the manifest's); {ADVICE}")
    return _checked(json.loads(library[start + DIGITS : end]), path), library


def _read_tar(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        with tarfile.open(path, "r:") as archive:
            names = set(archive.getnames())
            if MANIFEST not in names and names & OLD_TVMC:
                raise LoweringError(
                    f"{path}: found an archive of the tvmc that TVM had until 0.19 ({', '.join(sorted(names))}), which no "
                    "longer runs; compile the model again"
                )
            manifest = _checked(json.loads(_member(archive, MANIFEST)), path)
            library = _member(archive, LIBRARY)
    except (tarfile.TarError, EOFError, KeyError, TypeError, ValueError) as refusal:
        reason = first_line(refusal)
        raise LoweringError(f"{path}: found a truncated or foreign file ({reason}); {ADVICE}") from refusal
    if hashlib.sha256(library).hexdigest() != manifest.get("sha256"):
        raise LoweringError(f"{path}: the library in it is damaged (its SHA-256 is not the manifest's); {ADVICE}")
    return manifest, library


def _checked(manifest: Any, path: Path) -> dict[str, Any]:
    if not isinstance(manifest, dict) or manifest.get("magic") != MAGIC:
        raise LoweringError(f"{path}: found an archive of something else; {ADVICE}")
    if not isinstance(manifest.get("format"), int):
        raise LoweringError(f"{path}: found format {manifest.get('format')!r}; {ADVICE}")
    if manifest["format"] > FORMAT:
        raise LoweringError(
            f"{path}: found format {manifest['format']}, written by {manifest.get('versions')}; this version "
            f"reads up to {FORMAT}. Upgrade reparam_compiler, or compile the model again"
        )
    return manifest


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    entry = archive.getmember(name)
    content = archive.extractfile(entry) if entry.isreg() else None
    if content is None:
        raise tarfile.ReadError(f"{name} is no regular file")
    data = content.read()
    if len(data) != entry.size:
        raise tarfile.ReadError(f"{name} ends after {len(data)} of {entry.size} bytes")
    return data


def _digits_at(library: bytes) -> int:
    return library.index(MARK) + len(MARK) + 1


def _digest(library: bytes, start: int) -> bytes:
    digest = hashlib.sha256(memoryview(library)[:start])
    digest.update(b"0" * DIGITS)
    digest.update(memoryview(library)[start + DIGITS :])
    return digest.hexdigest().encode()


def _as_json(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()
