"""Atomic writes, checksums and the run lock."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kerasnorm.errors import RunFolderError


def fsync_folder(folder: Path) -> None:
    """Makes the renames done in `folder` durable (POSIX; elsewhere nothing is needed)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Yields a binary file that takes the place of `path` when the block ends without error.

    The bytes go to a temporary sibling, are fsynced and renamed: a reader, or the next start
    after a crash, sees the old file or the new one whole.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically."""
    with atomic_writer(path) as file:
        file.write(content)


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document, indented, to `path` atomically; NaN and infinity are refused."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the exclusive lock of a run's folder while the block runs.

    The operating system drops the lock of a process that dies.

    Raises:
        RunFolderError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RunFolderError(
            f"{folder} is in use by another kerasnorm process; wait for it or choose another --out."
        ) from None
