"""The card beside an exported file: what it is, takes and gives, and its checksums."""

import json
from pathlib import Path
from typing import Any

from kerasnorm.errors import CorruptFileError
from kerasnorm.files import sha256
from kerasnorm.formats.formats import Format

MAX_BYTES = 1 << 24


def card_path(path: Path) -> Path:
    """Returns where the card of the exported file or folder at `path` stands."""
    return path.with_name(f"{path.name}.json")


def parts(path: Path, format: Format) -> dict[str, Path]:  # noqa: A002
    """Returns the files that an export consists of, by their names."""
    if path.is_dir():
        files = sorted(entry for entry in path.rglob("*") if entry.is_file())
        return {entry.relative_to(path).as_posix(): entry for entry in files}
    files = [path, *(path.with_suffix(suffix) for suffix in format.companions)]
    return {entry.name: entry for entry in files if entry.is_file()}


def checksums(path: Path, format: Format) -> dict[str, str]:  # noqa: A002
    """Returns the SHA-256 of each file that an export consists of."""
    return {name: sha256(entry) for name, entry in parts(path, format).items()}


def read_card(path: Path, format: Format) -> dict[str, Any]:  # noqa: A002
    """Returns the card of the export at `path`, {} where it has none.

    Raises:
        CorruptFileError: The card is damaged, or the files are not those that it was written for.
    """
    place = card_path(path)
    if not place.is_file():
        return {}
    try:
        if place.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        card = json.loads(place.read_text(encoding="utf-8"))
        expected = card["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"The card {place} is damaged: {error}") from None
    if checksums(path, format) != expected:
        raise CorruptFileError(
            f"{path} is not the file that its card {place.name} was written for: the checksums "
            "differ. Export it again."
        )
    return dict(card)
