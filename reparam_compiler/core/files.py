"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file beside `path`, of the same suffix, to be written; it takes the place of `path` when the block ends.

    Where the block raises, that file is gone, and an older one is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(f"{folder}/cut.json") as part:
    ...         _ = part.write_text("{}")
    ...     os.listdir(folder)
    ['cut.json']

    Raises FileNotFoundError where the folder does not exist, before anything is written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist; make it first")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{target.suffix}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
