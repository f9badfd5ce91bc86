"""Limits that every model file is held to, and the archives and folders that carry them."""

import tomllib
import zipfile
from importlib import resources
from pathlib import Path, PurePosixPath

from kerasnorm.errors import CorruptFileError

MAX_BYTES = 1 << 30  # of a file, or of all members of an archive, unpacked
MAX_WEIGHTS = 1 << 28


def read_limited(path: Path) -> bytes:
    """Returns a file's bytes.

    Raises:
        CorruptFileError: It is missing, empty or too large.
    """
    check_file(path)
    return path.read_bytes()


def check_file(path: Path) -> None:
    """Makes sure that a file is there and of a bearable size.

    Raises:
        CorruptFileError: It is not.
    """
    if not path.is_file():
        raise CorruptFileError(f"There is no model file {path}.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CorruptFileError(f"{path} is larger than {MAX_BYTES >> 20} MiB.")
    if size == 0:
        raise CorruptFileError(f"{path} is empty.")


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Makes sure that an archive's members are whole, bearable, and stay in their folder.

    Raises:
        CorruptFileError: They are not.
    """
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
    """Makes sure that a model does not hold, or would not allocate, too many weights.

    Raises:
        CorruptFileError: It does.
    """
    if weights > MAX_WEIGHTS:
        raise CorruptFileError(f"{path} holds more than {MAX_WEIGHTS:,} weights.")


def admitted(framework: str, kind: str) -> frozenset[str]:
    """Returns the operations that files from elsewhere may list; see `operations.toml`."""
    text = (resources.files("kerasnorm.formats") / "operations.toml").read_text(encoding="utf-8")
    return frozenset(tomllib.loads(text)[framework][kind].split())
