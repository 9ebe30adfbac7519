"""Artifacts as older versions wrote them: of one variant, which the manifest describes itself."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from reparam_compiler.lowering.runtime.archive import LIBRARY, MANIFEST, MARK, WEIGHTS, read
from reparam_compiler.lowering.runtime.stored import written


def rewritten(path: Path, to: Path, format: int, **changes: Any) -> None:
    """An archive of one variant without weights, or with them, as version 1 or 3 had it."""
    artifact = read(path)
    manifest, (library,) = artifact.manifest, artifact.libraries
    (variant,) = manifest["variants"]
    older = {key: variant[key] for key in ("target", "inputs", "outputs", "kernels", "memory")}
    older |= {key: manifest[key] for key in ("magic", "versions")} | {"format": format} | changes
    members = {LIBRARY: bytes(library)}
    if format == 1:
        members[LIBRARY] = members[LIBRARY].replace(MARK, bytes(len(MARK)))
    else:
        shapes = [entry["shape"] for entry in manifest["arrays"]]
        older["weights"] = [entry | {"stored": shapes[entry["stored"]]} for entry in manifest["weights"]]
        members[WEIGHTS] = written(artifact.arrays)
        older["weights_sha256"] = hashlib.sha256(members[WEIGHTS]).hexdigest()
    older["sha256"] = hashlib.sha256(members[LIBRARY]).hexdigest()
    with tarfile.open(to, "w") as archive:
        for name, content in {MANIFEST: json.dumps(older).encode(), **members}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
