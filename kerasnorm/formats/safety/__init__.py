"""What keeps model files that anyone may have written from doing harm.

- This module: limits that every file is held to, and the archives and folders that carry them.
- `checks` and `pt2`: what the formats may hold, checked before their runtimes open a file.
- `torch_files`: the tensors of PyTorch files.
- `process`: the process with limits of memory and time in which runtimes open files.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from kerasnorm.errors import CorruptFileError, first_line

MAX_BYTES = 1 << 30  # of a file, or of all members of an archive, unpacked
MAX_WEIGHTS = 1 << 28
MAX_IMAGE = 1 << 24  # values of one image


@contextmanager
def reading(path: Path, kind: str = "") -> Iterator[None]:
    """Turns every error of the block, which parses a file, into one that names the file.

    `kind` is what the file should be, where its suffix does not tell.

    Raises:
        CorruptFileError: The block failed.
    """
    try:
        yield
    except CorruptFileError:
        raise
    except Exception as error:  # zipfile, json, Keras and the others raise nearly every type
        doubt = f"no {kind}, or is " if kind else ""
        reason = first_line(error) or type(error).__name__
        raise CorruptFileError(f"{path} is {doubt}damaged: {reason}") from error


def parts(document: Any) -> Iterator[Any]:
    """Yields every table and list of a JSON document, at any depth; it may be nested deeply."""
    pending = [document]
    while pending:
        part = pending.pop()
        if isinstance(part, (dict, list)):
            yield part
            pending.extend(part.values() if isinstance(part, dict) else part)


def read_limited(path: Path) -> bytes:
    """Returns the bytes of a file that passes `check_file`."""
    check_file(path)
    return path.read_bytes()


def check_file(path: Path) -> None:
    """Raises a CorruptFileError unless a file exists and is neither empty nor too large."""
    if not path.is_file():
        raise CorruptFileError(f"There is no model file {path}.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CorruptFileError(f"{path} is larger than {MAX_BYTES >> 20} MiB.")
    if size == 0:
        raise CorruptFileError(f"{path} is empty.")


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises a CorruptFileError unless an archive's members are whole, small and in its folder."""
    members = archive.infolist()
    if sum(member.file_size for member in members) > MAX_BYTES:
        raise CorruptFileError(f"{path} unpacks to more than {MAX_BYTES >> 20} MiB.")
    for member in members:
        place = PurePosixPath(member.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or ":" in member.filename:
            raise CorruptFileError(
                f"{path} was refused: its member {member.filename!r} would leave its folder."
            )
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise CorruptFileError(f"{path} was refused: two of its members have the same name.")
    if (bad := archive.testzip()) is not None:
        raise CorruptFileError(f"{path} is damaged: the checksum of its member {bad!r} differs.")


def check_count(path: Path, weights: float) -> None:
    """Raises a CorruptFileError if a model holds, or would allocate, too many weights."""
    if weights > MAX_WEIGHTS:
        raise CorruptFileError(f"{path} holds more than {MAX_WEIGHTS:,} weights.")


def check_image(path: Path, values: float) -> None:
    """Raises a CorruptFileError if a model's images are too large."""
    if values > MAX_IMAGE:
        raise CorruptFileError(f"{path} takes images of more than {MAX_IMAGE:,} values.")
