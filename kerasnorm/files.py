"""Atomic writes, checksums and the run lock."""

import dataclasses
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kerasnorm.errors import CorruptFileError, RunFolderError

LOCK = ".lock"
MANIFEST = "manifest.json"


def fsync_folder(folder: Path) -> None:
    """Makes the renames done in `folder` durable (POSIX; elsewhere nothing is needed)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Yields a binary file that takes the place of `path` when the block ends without error.

    The bytes go to a temporary sibling, which is fsynced and renamed: a reader, or the next start
    after a crash, sees the old file or the new one whole.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically.

    Raises:
        RunFolderError: It cannot be written; the message says how much it needs and is free.
    """
    try:
        with atomic_writer(path) as file:
            file.write(content)
    except OSError as error:
        raise unwritable(path, error, len(content)) from error


def unwritable(path: Path, error: OSError, need: int) -> RunFolderError:
    """Returns the error for a file of `need` bytes that could not be written."""
    text = f"Cannot write {path}: {error.strerror or error}. It needs {need:,} bytes"
    with suppress(OSError):
        text += f"; {shutil.disk_usage(path.parent).free:,} are free there"
    return RunFolderError(f"{text}. What was written before is whole.")


def plain(value: Any) -> Any:
    """Returns a document as JSON-able lists, dicts and scalars; numbers not finite become None.

    The document may hold dataclasses, named tuples, paths, and arrays and scalars of NumPy.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def as_json(document: Any) -> bytes:
    """Returns a JSON document, indented, as bytes; NaN and infinity are refused."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # A path that the locale could not decode goes back to the bytes that it came from.
    return text.encode(errors="surrogateescape") + b"\n"


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document, indented, to `path` atomically; NaN and infinity are refused."""
    write_bytes(path, as_json(document))


def digest(content: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Writes the checksums of some files of a folder beside them."""
    write_json(folder / MANIFEST, {"sha256": {name: sha256(folder / name) for name in names}})


def read_manifest(folder: Path) -> dict[str, str]:
    """Returns the checksums of a folder's files by name; without a manifest there are none.

    Raises:
        CorruptFileError: The manifest is damaged.
    """
    manifest = folder / MANIFEST
    try:
        return dict(json.loads(manifest.read_bytes())["sha256"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{manifest} is damaged: {error}") from None


def check_file(path: Path) -> None:
    """Compares a file with its checksum in the manifest beside it, where there is one.

    Raises:
        CorruptFileError: The file differs or is missing, or the manifest is damaged.
    """
    expected = read_manifest(path.parent).get(path.name)
    try:
        is_same = expected is None or sha256(path) == expected
    except OSError as error:
        raise CorruptFileError(f"{path} is missing or damaged: {error.strerror}") from None
    if not is_same:
        raise CorruptFileError(
            f"{path} is damaged or was changed: its checksum differs from the one in "
            f"{path.parent / MANIFEST}."
        )


def make_folder(path: Path) -> None:
    """Makes a folder and its missing parents, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync_folder(folder.parent)


def sweep(folder: Path) -> None:
    """Removes the temporary files of a process that died while writing; call it under the lock."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def run_lock(folder: Path) -> Iterator[Path]:
    """Holds the exclusive lock of a run's folder, and yields the folder, while the block runs.

    The operating system drops the lock of a process that dies.

    Raises:
        RunFolderError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunFolderError(
            f"{folder} is in use by another kerasnorm process; wait for it or choose another --out."
        ) from None
    except OSError as error:
        raise RunFolderError(
            f"Cannot write the run's folder {folder}: {error.strerror or error}. "
            "Choose another --out."
        ) from error
    try:
        yield folder
    finally:
        lock.release()
