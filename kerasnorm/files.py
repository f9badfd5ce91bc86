"""Atomic writes, checksums and locks, as far as the file system goes.

Network and FUSE mounts may lack fsync of folders, or locks: one warning says so, and the work goes
on without.
"""

import codecs
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kerasnorm.errors import ConfigError, CorruptFileError, RunFolderError, described

LOCK = ".lock"
MANIFEST = "manifest.json"
# What systems, version control and queues leave in a folder that people call empty.
PLACEHOLDERS = frozenset({LOCK, ".gitkeep", ".gitignore", ".keep", ".DS_Store", "lost+found",
                          "Thumbs.db", "desktop.ini", "log.txt"})  # fmt: skip
LOG_SUFFIXES = frozenset({".log", ".out", ".err"})
# Errors of a file system that does not offer an operation; others, such as a full disk, are raised.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM,
                         errno.EACCES, errno.EBADF})  # fmt: skip
LONGEST_NAME = 120  # bytes; file systems take 255, encrypted ones 143, and names get endings
# A list of numbers alone in indented JSON; a text in JSON holds no line break.
_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]*\]")

logger = logging.getLogger(__name__)


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def fsync(file: int | IO[bytes]) -> None:
    """Makes what was written to an open file durable, where the file system can.

    Raises:
        OSError: The write failed.
    """
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_once(
            f"This file system has no fsync ({error.strerror}): after a power failure, the newest "
            "files may be missing."
        )


def fsync_folder(folder: Path) -> None:
    """Makes the renames done in `folder` durable (POSIX; elsewhere nothing is needed)."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not listed
        return
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def is_empty(folder: Path) -> bool:
    """Returns whether a folder holds nothing of its user.

    Placeholders, temporary files of a process that died, and logs, such as the one that this
    process writes, do not count.
    """
    streams = []
    for number in (1, 2):
        with suppress(OSError):  # it is closed
            streams.append(os.fstat(number))

    def counts(path: Path) -> bool:
        is_temporary = path.name.startswith((".nfs", ".fuse_hidden")) or (
            path.name.startswith(".") and path.suffix == ".tmp"
        )
        is_log = path.is_file() and (
            path.suffix in LOG_SUFFIXES or any(os.path.samestat(path.stat(), s) for s in streams)
        )
        return not (path.name in PLACEHOLDERS or is_temporary or is_log)

    return not any(counts(path) for path in folder.iterdir())


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
            fsync(file)
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


def encoded(text: str) -> bytes:
    """Returns text as UTF-8; a path that is not valid text becomes the bytes that it came from."""
    return text.encode(errors="surrogateescape")


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8, as `encoded` wrote it, or as an editor left it.

    A byte order mark is passed over. Files in UTF-16, as PowerShell writes them, are read too.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: It starts like UTF-16 and is not.
    """
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig", "surrogateescape")


def as_json(document: Any) -> bytes:
    """Returns a JSON document, indented, as bytes; NaN and infinity are refused.

    A list of numbers is one line: the confusion matrix of 1,000 classes has a million of them.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return encoded(_NUMBERS.sub(lambda found: re.sub(r"\s", "", found[0]), text) + "\n")


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


def short_name(name: str) -> str:
    """Returns a name for a file or folder: where it is long, its beginning and a hash of it all."""
    content = name.encode(errors="surrogateescape")
    if len(content) <= LONGEST_NAME:
        return name
    start = content[: LONGEST_NAME - 9].decode(errors="ignore")
    return f"{start}-{digest(content)[:8]}"


def numbered(name: str) -> Iterator[str]:
    """Yields name, name-2, name-3 and so on, of which the caller takes the first that is free."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def as_path(value: object, name: str) -> Path:
    """Returns a path that was given as text or as a path, or raises a ConfigError."""
    if not isinstance(value, str | Path):
        raise ConfigError(
            f"{name}: expected the path of a file or folder, as text or a pathlib.Path. "
            f"Received: {name}={described(value)}"
        )
    return Path(value)


def in_command(path: Path | str) -> str:
    """Returns a path as a word of a command line: quoted where the shell needs it."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


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


def _has_locks(folder: Path) -> bool:
    """Returns whether files in a folder, which must be writable, can be locked."""
    if sys.platform == "win32":
        return True
    import fcntl

    with tempfile.TemporaryFile(dir=folder, prefix=".", suffix=".tmp") as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            _warn_once(
                f"The file system of {folder} has no locks ({error.strerror}): let no two "
                "processes write to one folder there."
            )
            return False
    return True


@contextmanager
def file_lock(path: Path, timeout: float) -> Iterator[None]:
    """Holds the exclusive lock of a file while the block runs, where the file system has locks.

    The operating system drops the lock of a process that dies.

    Raises:
        TimeoutError: Another process holds it.
        OSError: The file cannot be made.
    """
    from filelock import FileLock

    if not _has_locks(path.parent):
        yield
        return
    with FileLock(path, timeout=timeout):
        yield


@contextmanager
def run_lock(folder: Path) -> Iterator[Path]:
    """Holds the exclusive lock of a run's folder, and yields the folder, while the block runs.

    Raises:
        RunFolderError: Another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(folder / LOCK, timeout=0))
        except TimeoutError:
            raise RunFolderError(
                f"{folder} is in use by another kerasnorm process; wait for it or choose another "
                "--out."
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"Cannot write the run's folder {folder}: {error.strerror or error}. "
                "Choose another --out."
            ) from error
        yield folder
