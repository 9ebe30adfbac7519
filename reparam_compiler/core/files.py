"""Files that are written whole or not at all, folders that outlive nobody, and what reading a broken file raises."""

import contextlib
import glob
import os
import secrets
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

UNREADABLE = (
    *(OSError, ValueError, EOFError, TypeError, IndexError, RuntimeError, SyntaxError, MemoryError),
    *(struct.error, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
"""What numpy and zipfile raise for an .npy or .npz that is broken, is encrypted, or holds objects."""
SCRATCH = "reparam-scratch-"


def cache_folder() -> Path:
    """The folder of what can be made anew, by the rule of freedesktop.org; it may not exist yet."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(stated) if os.path.isabs(stated) else Path.home() / ".cache") / "reparam_compiler"


@contextlib.contextmanager
def alone(path: str | os.PathLike[str]) -> Iterator[None]:
    """One process at a time in this block for a file, which is to be written in it; its folder is made.

    Where there is nothing to lock, as in a folder that cannot be written or on a system without locks, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(Path(path).with_suffix(".lock").open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, gone after the block, or by `remove_abandoned` where the process is killed in it.

    It is locked while it is in use, and has its name once it is locked.
    """
    hidden = Path(tempfile.mkdtemp(prefix=f".{SCRATCH}"))
    with held(hidden):
        folder = hidden.rename(hidden.with_name(hidden.name.removeprefix(".")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> int:
    """Remove the scratch folders of processes that were killed; how many there were. None where there are no locks."""
    found = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with held(folder) as abandoned:
            if abandoned:
                shutil.rmtree(folder, ignore_errors=True)
                found += not folder.exists()
    return found


@contextlib.contextmanager
def temporary_files_removed() -> Iterator[None]:
    """For a program: its temporary files, and those of the programs that it starts, are in a scratch folder; abandoned ones go.

    Where none can be made, they are where they would be.
    """
    remove_abandoned()
    environment, folder = os.environ.get("TMPDIR"), tempfile.tempdir
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            os.environ["TMPDIR"] = tempfile.tempdir = str(stack.enter_context(scratch_folder()))
        try:
            yield
        finally:
            tempfile.tempdir = folder
            if environment is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = environment


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether nobody else holds a file or folder while the block runs; False where there are no locks.

    wait: until those who hold it let go.
    """
    with contextlib.ExitStack() as stack:
        locked = False
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        yield locked


def check_place(path: str | os.PathLike[str]) -> None:
    """Asks before minutes of work what would fail after them.

    Raises FileNotFoundError where the folder of a file to be written does not exist, IsADirectoryError where it is a folder,
    PermissionError where nothing can be written there.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target}: found a folder; expected the name of a file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{target}: the folder {target.parent} cannot be written; name a file in another")


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file beside `path`, of the same suffix, to be written; it takes the place of `path` when the block ends.

    Where the block raises, that file is gone, and an older one is as it was. Where the process is killed in it, the next one
    that writes `path` removes the file: it is locked while it is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(f"{folder}/cut.json") as part:
    ...         _ = part.write_text("{}")
    ...     os.listdir(folder)
    ['cut.json']

    Raises as `check_place`, before anything is written; OSError that names `path` where there is no room for it.
    """
    check_place(path)
    target = Path(path)
    for part in abandoned_parts(target):
        part.unlink(missing_ok=True)
    with _locked_part(target) as part:
        try:
            yield part
            part.replace(target)
        except OSError as error:
            if error.errno is None or (error.filename is not None and str(error.filename) != str(part)):  # of another file
                raise
            raise _unwritten(target, error) from error
        finally:
            part.unlink(missing_ok=True)


def _unwritten(target: Path, error: OSError) -> OSError:
    """What happened to the file beside it, told of the one that was asked for."""
    return OSError(error.errno, f"{error.strerror}; what was there before is as it was", str(target))


def abandoned_parts(target: Path) -> Iterator[Path]:
    """What processes that were killed in `written_whole` left beside a file; each is locked until the next is asked for."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}{glob.escape(target.suffix)}"):
        with held(part) as abandoned:
            if abandoned:
                yield part


@contextlib.contextmanager
def _locked_part(target: Path) -> Iterator[Path]:
    """A new, empty file beside another one, locked where there are locks."""
    while True:
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{target.suffix}")
        try:
            part.touch(exist_ok=False)
        except OSError as error:
            raise _unwritten(target, error) from error
        with held(part, wait=True):
            if part.exists():  # another process may have taken it for an abandoned one before it was locked
                yield part
                return
