"""The files an artifact can be: an archive, or one shared library that describes itself.

    module.tar = tar { manifest.json, a library for each variant, weights.bin }   weights as the model has them, packed when it
                                                                                  is loaded
    model.so   = ELF { kernels, constants, symbol reparam_manifest }, packed weights, other libraries, length of the ELF
                                                                                  mapped as it is

The first library holds the manifest in both:

    reparam_manifest = MARK \n <64 hex digits> \n <manifest as JSON> \0

The digits are the SHA-256 of the file with zeros in their place. The manifest is found by its mark, without loading
the library, so that one that was cut, damaged, or made for another machine is refused before any of its code runs.
Weights begin at a page behind the ELF, which the loader of the system does not look at; in both files each begins at
a multiple of 64 bytes (`stored.offsets`). The libraries of further variants follow, each at a page. The last eight bytes of a
library that has something behind it say how long its ELF is.

Members of an archive are read by name and written only into a fresh folder of our own, so an archive cannot write
elsewhere; but a library is machine code: load only artifacts that you trust.
"""

import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.runtime.stored import offsets, read_back, written

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.stored import Array

Format = Literal["tar", "so"]

FORMATS: tuple[Format, ...] = ("tar", "so")
FORMAT = 5
"""The version that is written; 1 had no manifest inside the library, 1 and 2 all weights among its constants, packing kept the
dtype in 3, and all of them hold one variant."""
MAGIC = "reparam_compiler artifact"
MANIFEST, LIBRARY, WEIGHTS = "manifest.json", "model.so", "weights.bin"
SYMBOL = "reparam_manifest"
MARK = b"\x01reparam_compiler manifest\x02"
OLD_TVMC = {"mod.so", "mod.tar", "mod.json", "mod.params", "metadata.json"}
DIGITS = 64
PAGE, LENGTH = 4096, 8
"""Bytes: what weights behind a library are aligned to, and of the number that says how long it is."""
NOT_WHOLE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)
"""What reading a manifest raises that says something else than ours do."""
ADVICE = "expected a file that Executable.save or `tvmc compile` wrote; write it again"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a file holds.

    manifest: in the newest format, whatever the file's is. libraries: of its variants, in their order.
    arrays: of each weight where `packed`, as kernels read it; else of what is stored, as the model has it.
    """

    manifest: dict[str, Any]
    libraries: "Sequence[bytes]"
    arrays: "list[Array]"
    packed: bool


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


def write_library(path: Path, libraries: Sequence[bytes], weights: "Sequence[Array]") -> None:
    """A library, its packed weights, further ones; and the digest of all in the place that `manifest_source` left for it."""
    first, *others = libraries
    content = bytearray(first)
    if weights or others:
        for part in (written(weights), *others):
            content += bytes(-len(content) % PAGE) + part
        content += len(first).to_bytes(LENGTH, "little")
    start = _digits_at(content)
    content[start : start + DIGITS] = _digest(content, start)
    path.write_bytes(content)
    path.chmod(0o755)


def library_names(variants: int) -> list[str]:
    """What the libraries of so many variants are called in an archive."""
    return [LIBRARY, *(f"model-{index}.so" for index in range(1, variants))]


def write_tar(path: Path, libraries: Sequence[bytes], manifest: dict[str, Any], arrays: "Sequence[Array]" = ()) -> None:
    """An archive of the libraries of all variants, their manifest, and the weights as the model has them."""
    members = [*zip(library_names(len(libraries)), libraries, strict=True), *([(WEIGHTS, written(arrays))] if arrays else [])]
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in ((MANIFEST, _as_json(manifest | {"sha256": digests})), *members):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def read(path: Path) -> Artifact:
    """What an artifact of either format holds.

    Raises: LoweringError where the file is missing, truncated, damaged, foreign, or written in a newer format.
    """
    if not path.is_file():
        raise LoweringError(f"{path}: no such file; {ADVICE}")
    with path.open("rb") as file:
        elf = file.read(4) == b"\x7fELF"
    return _read_library(path) if elf else _read_tar(path)


def variants_described(library: bytes) -> int:
    """Of how many variants the manifest in a library is; 0 without one, as in format 1 and in further libraries of a file."""
    found = library.find(MARK)
    if found < 0:
        return 0
    start = found + len(MARK) + 1 + DIGITS
    manifest = json.loads(library[start : library.index(b"\0", start)])
    return len(_as_newest(manifest)["variants"])


def _read_library(path: Path) -> Artifact:
    with path.open("rb") as file:
        content = mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_COPY
        )  # its pages are those of the file, unless they are written
    mark = content.find(MARK)
    if mark < 0:
        raise LoweringError(f"{path}: found a truncated library, or one of something else (it holds no manifest); {ADVICE}")
    start = mark + len(MARK) + 1
    end = content.find(b"\0", start)
    if content[start : start + DIGITS] != _digest(content, start) or end < 0:
        raise LoweringError(
            f"{path}: the library is truncated or damaged, or was taken out of an archive, which has its weights (its SHA-256 "
            f"is not the manifest's); {ADVICE}"
        )
    try:
        return _parts(content, _checked(json.loads(content[start + DIGITS : end]), path))
    except NOT_WHOLE as refusal:
        raise LoweringError(f"{path}: the manifest in the library is not whole ({first_line(refusal)}); {ADVICE}") from refusal


def _parts(content: mmap.mmap, manifest: dict[str, Any]) -> Artifact:
    """What the bytes of a library hold, by its manifest."""
    described, others = manifest["weights"], manifest["variants"][1:]
    if not described and not others:
        return Artifact(manifest, [content[:]], [], True)
    length = int.from_bytes(content[-LENGTH:], "little")
    sizes, dtypes = [entry["shape"] for entry in described], [entry["dtype"] for entry in described]
    weights = read_back(memoryview(content)[_page(length) :], sizes, dtypes)
    place = _page(length) + offsets([array.nbytes for array in weights])[-1]
    return Artifact(manifest, [content[:length], *_behind(content, place, others)], weights, True)


def _behind(content: mmap.mmap, place: int, variants: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """The libraries of further variants, behind the weights, which end at `place`."""
    for variant in variants:
        start = _page(place)
        place = start + variant["size"]
        yield content[start:place]


def _page(place: int) -> int:
    """The first page that begins there or behind."""
    return -(-place // PAGE) * PAGE


def _read_tar(path: Path) -> Artifact:
    try:
        with tarfile.open(path, "r:") as archive:
            names = set(archive.getnames())
            if MANIFEST not in names and names & OLD_TVMC:
                raise LoweringError(
                    f"{path}: found an archive of the tvmc that TVM had until 0.19 ({', '.join(sorted(names))}), which no "
                    "longer runs; compile the model again"
                )
            manifest = _checked(json.loads(_member(archive, MANIFEST)), path)
            stored, libraries = manifest["arrays"], library_names(len(manifest["variants"]))
            held = {name: _member(archive, name) for name in (*libraries, *([WEIGHTS] if stored else []))}
        for name, content in held.items():
            if hashlib.sha256(content).hexdigest() != manifest["sha256"].get(name):
                raise LoweringError(f"{path}: {name} in it is damaged (its SHA-256 is not the manifest's); {ADVICE}")
        shapes, dtypes = ([entry[key] for entry in stored] for key in ("shape", "dtype"))
        arrays = read_back(bytearray(held.get(WEIGHTS, b"")), shapes, dtypes)
        return Artifact(manifest, [held[name] for name in libraries], arrays, False)
    except (tarfile.TarError, EOFError, *NOT_WHOLE) as refusal:
        reason = first_line(refusal)
        raise LoweringError(f"{path}: found a truncated or foreign file ({reason}); {ADVICE}") from refusal


def _checked(manifest: Any, path: Path) -> dict[str, Any]:
    """A manifest of ours in the newest format. Raises: LoweringError for another one, or one that is newer."""
    if not isinstance(manifest, dict) or manifest.get("magic") != MAGIC:
        raise LoweringError(f"{path}: found an archive of something else; {ADVICE}")
    if not isinstance(manifest.get("format"), int):
        raise LoweringError(f"{path}: found format {manifest.get('format')!r}; {ADVICE}")
    if manifest["format"] > FORMAT:
        raise LoweringError(
            f"{path}: found format {manifest['format']}, written by {manifest.get('versions')}; this version "
            f"reads up to {FORMAT}. Upgrade reparam_compiler, or compile the model again"
        )
    return _as_newest(manifest)


def _as_newest(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of any format in the newest one."""
    return manifest if manifest["format"] == FORMAT else _as_one_variant(manifest)


def _as_one_variant(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of an older format, which describes one variant and a stored array for each weight, in the newest one."""
    older = manifest.get("weights", [])
    of_variant = {key: manifest.get(key) for key in ("target", "inputs", "outputs", "kernels", "memory")}
    return {
        "versions": manifest.get("versions"),
        "any_batch": False,
        "arrays": [{"dtype": entry["dtype"], "shape": entry["stored"]} for entry in older],
        "weights": [
            {**entry, "stored": place, "dtype": entry.get("packed", entry["dtype"])} for place, entry in enumerate(older)
        ],
        "variants": [{**of_variant, "weights": list(range(len(older)))}],
        "sha256": {LIBRARY: manifest.get("sha256"), WEIGHTS: manifest.get("weights_sha256")},
    }


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    entry = archive.getmember(name)
    content = archive.extractfile(entry) if entry.isreg() and not entry.issparse() else None
    if content is None:
        raise tarfile.ReadError(f"{name} is no regular file, or one with holes")
    if entry.size > Path(str(archive.name)).stat().st_size:
        raise tarfile.ReadError(f"{name} should have {entry.size} bytes, more than the whole archive")
    data = content.read()
    if len(data) != entry.size:
        raise tarfile.ReadError(f"{name} ends after {len(data)} of {entry.size} bytes")
    return data


def _digits_at(library: bytearray) -> int:
    return library.index(MARK) + len(MARK) + 1


def _digest(library: bytearray | mmap.mmap, start: int) -> bytes:
    digest = hashlib.sha256(memoryview(library)[:start])
    digest.update(b"0" * DIGITS)
    digest.update(memoryview(library)[start + DIGITS :])
    return digest.hexdigest().encode()


def _as_json(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()
